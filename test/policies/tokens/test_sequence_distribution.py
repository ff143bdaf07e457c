import itertools
import math

import pytest
import torch
from markov_policy import MarkovVLA, make, observations

from torchrl_vla.errors import SchemaError, TokenError
from torchrl_vla.policies import TokenSampling
from torchrl_vla.tokenizers import UniformActionTokenizer


def tiny():
    """A tokenizer of 3 numbers in [0, 2), so that all sequences can be counted."""
    bins = UniformActionTokenizer(2, low=-1.0, high=1.0)
    torch.manual_seed(0)
    return MarkovVLA(action_dim=1, chunk_size=3, action_tokenizer=bins)


def by_hand(policy, data, tokens, sampling):
    """Log-probabilities token by token, with the grammar's sets and plain softmax."""
    decoder, grammar = policy.make_decoder(data), policy.grammar
    logits, state = decoder.begin()
    place, found = grammar.start(len(data)), []
    for t, token in enumerate(tokens.unbind(-1)):
        allowed = grammar.allowed(place)
        scaled = (logits / sampling.temperature).masked_fill(~allowed, -math.inf)
        if sampling.truncates:
            kept = sampling.kept(scaled)
            assert kept.gather(-1, token[:, None]).all()  # it was drawn from these
            scaled = scaled.masked_fill(~kept, -math.inf)
        share = scaled.softmax(-1).gather(-1, token[:, None])[:, 0]
        found.append(share.log())
        place = grammar.advance(place, token)
        if t + 1 < tokens.shape[-1]:
            logits, state = decoder.step(state, token)
    return torch.stack(found, -1)


@pytest.mark.parametrize("sampling", [None, TokenSampling(0.7, top_k=5, top_p=0.9)])
@pytest.mark.parametrize("kind", ["fast", "beast", "bins"])
def test_log_probs_are_of_the_constrained_and_truncated_distribution(kind, sampling):
    policy, data = make(kind, sampling), observations(40)
    with torch.no_grad():
        dist = policy.get_dist(data)
        tokens = dist.sample()
        elements = dist.element_log_probs(tokens)
        expected = by_hand(policy, data, tokens, sampling or TokenSampling())
    torch.testing.assert_close(elements, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(dist.log_prob(tokens), elements.sum(-1))


def test_the_probabilities_of_all_sequences_sum_to_one():
    policy, data = tiny(), observations(1)
    every = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    dist = policy.get_dist(data.expand(8))
    torch.testing.assert_close(dist.log_prob(every).exp().sum(), torch.tensor(1.0))


def test_sequences_are_drawn_as_often_as_their_probability_says():
    policy, data = tiny(), observations(1).expand(4000)
    torch.manual_seed(1)
    every = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    expected = policy.get_dist(data[:8]).log_prob(every).exp()
    for tokens in (
        policy.get_dist(data).sample(),
        policy.get_dist(data).sample_with_seeds(torch.arange(4000)),
    ):
        code = (tokens * torch.tensor([4, 2, 1])).sum(-1)
        share = code.bincount(minlength=8) / 4000
        assert (share - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("kind", ["fast", "beast", "bins"])
def test_every_one_of_2000_sampled_sequences_decodes(kind):
    policy, data = make(kind), observations(2000)
    with torch.no_grad():
        tokens = policy.get_dist(data).sample()
    assert policy.decode(tokens).isfinite().all()


def test_seeded_samples_do_not_depend_on_the_batch():
    policy, data = make(), observations(9)
    seeds = torch.arange(9) * 7
    together = policy.get_dist(data).sample_with_seeds(seeds)
    for row in range(9):
        alone = policy.get_dist(data[row : row + 1])
        assert torch.equal(
            alone.sample_with_seeds(seeds[row : row + 1])[0], together[row]
        )


def test_the_mode_takes_the_likeliest_token_each_time():
    policy, data = make(), observations(5)
    mode = policy.get_dist(data).mode
    elements = policy.get_dist(data).element_log_probs(mode)
    masks = policy.grammar.allowed_along(mode)
    logits = policy.make_decoder(data).along(mode).masked_fill(~masks, -math.inf)
    assert torch.equal(logits.argmax(-1), mode)
    assert (elements <= 0).all()


def test_end_tokens_have_log_prob_0_and_no_gradient():
    policy, data = make(), observations(30)
    tokens = policy.get_dist(data).sample()
    ended = ~policy.action_tokenizer.is_token(tokens)
    assert ended.any()
    assert not ended.all(0).all()
    elements = policy.get_dist(data).element_log_probs(tokens)
    assert torch.equal(elements[ended], torch.zeros(int(ended.sum())))
    logits = torch.randn(1, 4, 5, requires_grad=True)
    only = torch.zeros(1, 4, 5, dtype=torch.bool)
    only[..., 4] = True
    forced = policy.get_dist(data)._log_probs(logits, only)[..., 4]
    (gradient,) = torch.autograd.grad(forced.sum(), logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_tokens_that_are_not_allowed_have_no_gradient():
    policy, data = make(), observations(4)
    tokens = policy.get_dist(data).sample()
    policy.get_dist(data).log_prob(tokens).sum().backward()
    first = policy.grammar.allowed(policy.grammar.start(1))[0]
    gradient = policy.places.weight.grad[0]
    assert not gradient[~first].any()
    assert gradient[first].any()


def test_a_token_that_truncation_cuts_off_today_keeps_a_finite_ratio():
    policy, data = make(sampling=TokenSampling(top_k=1)), observations(6)
    tokens = policy.get_dist(data).sample()
    with torch.no_grad():
        policy.places.weight[0].neg_()
        policy.table.weight.neg_()
    found = policy.get_dist(data).log_prob(tokens)
    assert found.isfinite().all()
    assert (found < 0).any()


@pytest.mark.parametrize("kind", ["fast", "bins"])
def test_what_counts_is_up_to_the_last_step_that_was_executed(kind):
    policy, data = make(kind), observations(3)
    tokens = policy.get_dist(data).sample()
    dist = policy.get_dist(data)
    elements = dist.element_log_probs(tokens)
    steps = torch.zeros(3, 8, dtype=torch.bool)
    steps[0, :5] = True  # stopped after 5 steps
    steps[1, 3:5] = True  # began late
    counted = dist.counted(tokens, elements, steps)
    if kind == "bins":  # two tokens for each step; the ones before are conditions
        assert counted.sum(-1).tolist() == [10, 10, 0]
        assert counted[:2, :10].all()
    else:
        lengths = policy.action_tokenizer.is_token(tokens).sum(-1)
        assert counted.sum(-1).tolist() == [*lengths[:2].tolist(), 0]
    assert dist.step_shape(elements) == (3, 8)


def test_wrong_tokens_are_refused_with_their_place():
    policy, data = make(), observations(3)
    tokens = policy.get_dist(data).sample()
    with pytest.raises(SchemaError, match=r"a choice int64 \[3, 16\], got int32"):
        policy.get_dist(data).log_prob(tokens.int())
    tokens[2, 0] = policy.action_tokenizer.end_token
    with pytest.raises(TokenError, match="position 0 of row 2"):
        policy.get_dist(data).log_prob(tokens)
    with pytest.raises(SchemaError, match="one sample per row at a time"):
        policy.get_dist(data).log_prob(policy.get_dist(data).sample([2]))
