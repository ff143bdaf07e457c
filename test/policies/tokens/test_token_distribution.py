from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import TokenDistribution, TokenSampling
from torchrl_vla.schema import SchemaError, TokenError


@given(
    n=st.integers(1, 3),
    h=st.integers(1, 3),
    a=st.integers(1, 3),
    v=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_log_prob_is_the_naive_sum(n, h, a, v, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, h, a, v, generator=generator, dtype=torch.float64)
    tokens = torch.randint(v, (n, h, a), generator=generator)
    expected = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        for j in range(h):
            for k in range(a):
                weights = [math.exp(x) for x in logits[i, j, k].tolist()]
                expected[i] += math.log(weights[tokens[i, j, k]] / sum(weights))
    torch.testing.assert_close(TokenDistribution(logits).log_prob(tokens), expected)


def test_each_token_has_its_own_probability():
    logits = torch.tensor([1.0, 3.0]).log().reshape(1, 1, 1, 2)
    dist = TokenDistribution(logits)
    for token, probability in ((0, 0.25), (1, 0.75)):
        got = dist.element_log_probs(torch.full((1, 1, 1), token)).exp()
        torch.testing.assert_close(got, torch.full((1, 1, 1), probability))


def test_the_mode_is_the_most_likely_token():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 0.0]]).reshape(1, 2, 1, 3)
    assert TokenDistribution(logits).mode.tolist() == [[[1], [0]]]


def test_entropy_is_that_of_the_whole_chunk():
    entropy = TokenDistribution(torch.zeros(5, 2, 3, 4)).entropy()
    # Six independent tokens of four equally likely values.
    torch.testing.assert_close(entropy, torch.full((5,), 6 * math.log(4)))


def test_a_certain_token_is_always_drawn():
    logits = torch.full((10, 2, 1, 3), -1e9)
    logits[..., 2] = 0.0
    assert (TokenDistribution(logits).sample() == 2).all()


def test_the_gradient_is_the_indicator_minus_the_probability():
    logits = torch.tensor([1.0, 2.0, 5.0]).log().reshape(1, 1, 1, 3).requires_grad_()
    TokenDistribution(logits).log_prob(torch.tensor([[[1]]])).sum().backward()
    expected = torch.tensor([-1 / 8, 1 - 2 / 8, -5 / 8])
    torch.testing.assert_close(logits.grad.flatten(), expected)


@pytest.mark.parametrize("shape", [(3, 2), (5, 3, 2), (1, 2, 3), (5, 3), (5, 2, 1)])
def test_tokens_are_never_broadcast(shape):
    dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
    with pytest.raises(
        SchemaError,
        match=r"^TokenDistribution: expected a choice int64 \[5, 2, 3\], got int64 "
        r"\[.*\]\. It is what this policy wrote at its sample_key, for this batch\.$",
    ):
        dist.log_prob(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_tokens_are_int64(dtype):
    dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
    with pytest.raises(SchemaError, match=rf"got {str(dtype)[6:]} \[5, 2, 3\]"):
        dist.log_prob(torch.zeros(5, 2, 3, dtype=dtype))


@pytest.mark.parametrize("foreign", [-1, 4, 31999])
def test_a_foreign_token_is_refused(foreign):
    tokens = torch.zeros(5, 2, 3, dtype=torch.int64)
    tokens[2, 1, 0] = foreign
    low, high = sorted((0, foreign))
    with pytest.raises(
        TokenError,
        match=rf"expected tokens in \[0, 4\), got values from {low} to {high}\. They "
        "come from another tokenizer",
    ):
        TokenDistribution(torch.zeros(5, 2, 3, 4)).element_log_probs(tokens)


def naive_log_probs(logits, tokens, sampling, allowed):
    """Log-probabilities of one row's tokens, by counting what is left."""
    out = []
    for row, token, may in zip(logits.tolist(), tokens.tolist(), allowed.tolist()):
        row = [x / sampling.temperature if ok else -math.inf for x, ok in zip(row, may)]
        kept = sampling.kept(torch.tensor(row, dtype=torch.float64)).tolist()
        kept[token] = True
        weights = [math.exp(x) if ok else 0.0 for x, ok in zip(row, kept)]
        out.append(math.log(weights[token] / sum(weights)))
    return torch.tensor(out, dtype=torch.float64)


SAMPLINGS = [
    TokenSampling(temperature=0.7),
    TokenSampling(top_k=2),
    TokenSampling(top_p=0.6),
    TokenSampling(temperature=1.5, top_k=4, top_p=0.8),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_controlled_log_probs_are_the_naive_ones(sampling, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 1, 2, 6, generator=generator, dtype=torch.float64)
    allowed = torch.rand(2, 6, generator=generator) < 0.7
    allowed[:, 0] = True
    dist = TokenDistribution(logits, sampling, allowed_tokens=allowed)
    for tokens in (dist.sample(), torch.zeros(7, 1, 2, dtype=torch.int64)):
        rows = allowed.expand(7, 2, 6).flatten(0, 1)
        args = logits.flatten(0, -2), tokens.flatten(), sampling, rows
        got = dist.element_log_probs(tokens).flatten()
        torch.testing.assert_close(got, naive_log_probs(*args))


@pytest.mark.parametrize("sampling", [*SAMPLINGS, None])
def test_what_is_drawn_is_what_is_evaluated(sampling):
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0]).reshape(1, 1, 1, 5)
    allowed = torch.tensor([True, True, True, True, False])
    dist = TokenDistribution(logits, sampling, allowed_tokens=allowed)
    drawn = dist.sample((20000,)).flatten()
    share = torch.bincount(drawn, minlength=5) / 20000
    probability = torch.zeros(5)
    for token in drawn.unique().tolist():
        one = torch.full((1, 1, 1), token)
        probability[token] = dist.element_log_probs(one).exp().item()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    # A share of 20000 draws has a deviation of at most 0.0036; this is 4.5 of them.
    torch.testing.assert_close(share, probability, rtol=0, atol=0.016)
    surprise = -(probability * probability.clamp_min(1e-30).log()).sum()
    torch.testing.assert_close(dist.element_entropy().squeeze(), surprise)


def test_the_mode_is_the_most_likely_allowed_token():
    logits = torch.tensor([0.0, 2.0, 9.0]).expand(4, 1, 2, 3)
    allowed = torch.tensor([[True, True, False], [True, False, True]])
    dist = TokenDistribution(logits, allowed_tokens=allowed)
    assert dist.mode.tolist() == [[[1, 2]]] * 4


def test_masked_and_cut_off_tokens_have_exactly_no_gradient():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0]).reshape(1, 1, 1, 5)
    logits.requires_grad_()
    allowed = torch.tensor([True, True, True, True, False])
    dist = TokenDistribution(
        logits, TokenSampling(top_k=2, temperature=2.0), allowed_tokens=allowed
    )
    for value in (
        dist.log_prob(torch.tensor([[[1]]])).sum(),
        dist.element_entropy().sum(),
    ):
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert (gradient.flatten()[[2, 3, 4]] == 0).all()  # nan is not 0
        assert (gradient.flatten()[:2] != 0).all()


def test_a_token_that_fell_out_of_the_kept_set_keeps_a_ratio_and_a_gradient():
    before = torch.tensor([1.0, 0.9, 0.8, 0.0]).reshape(1, 1, 1, 4)
    after = torch.tensor([1.0, 0.9, 0.95, 0.0]).reshape(1, 1, 1, 4).requires_grad_()
    sampling, token = TokenSampling(top_k=2), torch.tensor([[[1]]])
    old = TokenDistribution(before, sampling).log_prob(token)
    dist = TokenDistribution(after, sampling)
    assert dist.logits[0, 0, 0, 1] == -math.inf  # not drawn any more
    new = dist.log_prob(token)
    # Evaluated among the two kept tokens and itself.
    expected = 0.9 - math.log(math.exp(1.0) + math.exp(0.95) + math.exp(0.9))
    assert new.item() == pytest.approx(expected, abs=1e-6)
    assert old.item() == pytest.approx(-math.log(1 + math.exp(0.1)), abs=1e-6)
    new.backward()
    assert after.grad.flatten()[1] > 0
    assert after.grad.flatten()[3] == 0


def test_a_masked_token_is_refused():
    allowed = torch.tensor([True, False])
    dist = TokenDistribution(torch.zeros(3, 1, 1, 2), allowed_tokens=allowed)
    with pytest.raises(
        TokenError,
        match=r"expected tokens that are allowed, got 1 at \[2, 0, 0\], which "
        r"allowed_tokens masks\.$",
    ):
        dist.log_prob(torch.tensor([[[0]], [[0]], [[1]]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_judged_in_single_precision(dtype):
    logits = torch.randn(3, 2, 1, 5).to(dtype)
    got = TokenDistribution(logits).log_prob(torch.zeros(3, 2, 1, dtype=torch.int64))
    assert got.dtype == torch.float32
    expected = logits.float().log_softmax(-1)[..., 0].sum((-2, -1))
    torch.testing.assert_close(got, expected)
