import pytest
import torch
from action_chunks import smooth_chunks
from tensordict.nn import InteractionType, set_interaction_type
from tiny_vlms import KINDS, make_observations, tiny_trunk

from torchrl_vla.errors import TokenError
from torchrl_vla.objectives import ChunkPPOLoss, TokenBCLoss
from torchrl_vla.policies import TokenSampling, load_policy, save_policy
from torchrl_vla.policies.vlm.token_head import VLMTokenPolicy
from torchrl_vla.testing import check_log_prob_consistency, check_loss, check_policy
from torchrl_vla.tokenizers import (
    BEASTActionTokenizer,
    FASTActionTokenizer,
    UniformActionTokenizer,
)

CHUNKS = smooth_chunks(200, size=4)
TOKENIZERS = {
    "fast": lambda: FASTActionTokenizer.fit(CHUNKS, vocab_size=120),
    "beast": lambda: BEASTActionTokenizer.fit(CHUNKS, num_basis=4, num_bins=16),
    "bins": lambda: UniformActionTokenizer(16, low=-1.0, high=1.0),
}


def make(kind="smolvlm", tokenizer="fast", vocabulary="own", sampling=None, **options):
    trunk = tiny_trunk(kind, **{"state_dim": 3, **options})
    policy = VLMTokenPolicy(
        trunk,
        action_dim=2,
        chunk_size=4,
        action_tokenizer=TOKENIZERS[tokenizer](),
        vocabulary=vocabulary,
        sampling=sampling,
    )
    return policy.eval()


def sampled(policy, n=5):
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        return policy(make_observations(n))


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [*((kind, "fast") for kind in KINDS), ("smolvlm", "beast"), ("smolvlm", "bins")],
)
def test_the_contract_of_a_policy_holds(kind, tokenizer):
    torch.manual_seed(3)
    check_policy(make(kind, tokenizer), make_observations(3))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_bit_equal(kind, tmp_path):
    policy = make(kind, sampling=TokenSampling(0.8, top_p=0.9))
    save_policy(tmp_path / "policy", policy)
    again = load_policy(tmp_path / "policy")
    assert again.sampling == policy.sampling
    data = make_observations(3)
    with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
        expected, got = policy(data.clone()), again(data.clone())
    for key in ("action_tokens", "action_chunk", "log_probs", "element_log_probs"):
        assert torch.equal(expected[key], got[key])


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_equals_the_tokens_one_by_one_to_rounding(kind):
    policy, data = make(kind), make_observations(4)
    with torch.no_grad():
        decoder = policy.make_decoder(data)
        tokens = policy.get_dist(data).sample()
        logits, state = decoder.begin()
        found = [logits]
        for token in tokens[:, :-1].unbind(-1):
            logits, state = decoder.step(state, token)
            found.append(logits)
        along = decoder.along(tokens)
    assert along.std() > 0.1
    torch.testing.assert_close(torch.stack(found, 1), along, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocabulary", ["own", "tail"])
def test_rollout_and_learner_agree_in_the_last_bit(vocabulary):
    sampling = TokenSampling(temperature=0.7, top_k=9, top_p=0.9)
    policy = make(tokenizer="bins", vocabulary=vocabulary, sampling=sampling)
    report = check_log_prob_consistency(policy, sampled(policy, 9))
    assert report.n_different == 0


def test_the_length_of_a_neighbour_s_sequence_changes_no_bit():
    policy = make()
    data = sampled(policy, 24)
    lengths = policy.action_tokenizer.is_token(data["action_tokens"]).sum(-1)
    short = lengths <= lengths.float().median()
    assert lengths.max() > lengths[short].max()
    with torch.no_grad():
        together = policy.element_log_probs(data)
        alone = policy.element_log_probs(data[short])
    assert torch.equal(together[short], alone)


def batch(policy):
    data = make_observations(6)
    data["action_chunk"] = CHUNKS[:6].clone()
    data["action_is_pad"] = torch.zeros(6, 4, dtype=torch.bool)
    data["action_is_pad"][::2, 3:] = True
    return policy.make_target_transform()(data).exclude("action_chunk")


@pytest.mark.parametrize("kind", KINDS)
def test_cloning_by_cross_entropy_lowers_the_loss_and_masks_padding(kind):
    policy = make(kind, "bins")
    data = batch(policy)
    loss = TokenBCLoss(policy)
    check_loss(loss, data)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    values = []
    for _ in range(8):
        value = loss(data)["loss_bc"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


def test_padded_tokens_have_no_gradient():
    policy = make(tokenizer="bins")
    data = batch(policy)[::2]  # the last step, two tokens of eight, is padded
    data["action_tokens"][:, 6] = 15  # a word that stands nowhere else
    data["action_tokens"][:, :6] %= 15
    TokenBCLoss(policy)(data)["loss_bc"].backward()
    gradient = policy.words.embedding.weight.grad
    assert not gradient[15].any()
    assert gradient[:15].any()


def test_the_tail_uses_the_language_model_s_own_rows():
    policy = make(tokenizer="bins", vocabulary="tail")
    names = [name for name, _ in policy.words.named_parameters()]
    assert names == ["first", "state.weight", "state.bias"]
    policy.log_prob(sampled(policy)).sum().backward()
    gradient = policy.trunk.model.get_output_embeddings().weight.grad
    assert gradient[-16:].any()
    assert not gradient[:-16].any()


def test_a_tail_in_use_is_refused():
    with pytest.raises(TokenError, match=r"121 tokens free of special ones .* in use"):
        make(vocabulary="tail", kind="paligemma")
    with pytest.raises(ValueError, match=r"vocabulary of .* got 'head'"):
        make(vocabulary="head")


def test_every_input_changes_the_tokens_probabilities():
    policy = make()
    data = sampled(policy, 2)
    state = data["observation", "state"].requires_grad_()
    (gradient,) = torch.autograd.grad(policy.log_prob(data).sum(), state)
    assert gradient.abs().min() > 0
    before = policy.log_prob(data).detach()
    other = data.clone()
    other["observation", "image", "a"] = 255 - other["observation", "image", "a"]
    assert (policy.log_prob(other) != before).all()


def test_a_learner_in_bfloat16_recomputes():
    from torchrl_vla.objectives import recompute_log_probs

    policy = make()
    data = sampled(policy, 6)
    learner = make(precision="bfloat16")
    learner.load_state_dict(policy.state_dict())
    with pytest.raises(AssertionError, match="ratio 1, got"):
        check_log_prob_consistency(learner, data)
    recompute_log_probs(learner, data)
    report = check_log_prob_consistency(learner, data, batch_sizes=(None,))
    assert report.ratio_error == 0.0


def test_a_compressed_sequence_costs_fewer_tokens_than_bins():
    policy = make()
    data = batch(policy)
    fast = policy.action_tokenizer.is_token(data["action_tokens"]).sum(-1)
    assert fast.float().mean() < 8  # the bins of 4 actions of 2 numbers


def test_ppo_moves_towards_what_had_an_advantage():
    policy = make()
    data = sampled(policy, 8)
    data["advantage"] = torch.linspace(-1, 1, 8).unsqueeze(-1)
    data["next", "is_executed"] = torch.ones(8, 4, dtype=torch.bool)
    before = policy.log_prob(data).detach()
    loss = ChunkPPOLoss(policy, granularity="token", clip_epsilon=(0.2, 0.28))
    optimizer = torch.optim.SGD(policy.parameters(), 0.05)
    out = loss(data)
    assert out["kl_approx"].item() == out["clip_fraction"].item() == 0.0
    out["loss_objective"].backward()
    optimizer.step()
    moved = policy.log_prob(data).detach() - before
    advantage = data["advantage"].squeeze(-1)
    assert (moved * advantage).sum() > 0


def test_the_registry_of_heads_takes_a_tokenizer():
    from torchrl_vla.policies import VLM_HEADS, VLMHeadConfig

    tokenizer = TOKENIZERS["beast"]()
    sizes = {"action_dim": 2, "chunk_size": 4}
    made = VLM_HEADS["tokens"](
        tiny_trunk("smolvlm"), VLMHeadConfig(**sizes, tokenizer=tokenizer)
    )
    assert made.action_tokenizer is tokenizer
    bins = VLM_HEADS["tokens"](tiny_trunk("smolvlm"), VLMHeadConfig(**sizes))
    assert bins.vocab_size == 256
