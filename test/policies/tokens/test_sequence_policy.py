import pytest
import torch
from markov_policy import CHUNKS, MarkovVLA, make, observations
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.errors import SchemaError
from torchrl_vla.objectives import ChunkPPOLoss, TokenBCLoss
from torchrl_vla.policies import load_policy, save_policy
from torchrl_vla.testing import check_loss, check_policy, check_transform
from torchrl_vla.tokenizers import FASTActionTokenizer, FlatActionTokenizer
from torchrl_vla.transforms import ActionTokenizerTransform

KINDS = ["fast", "beast", "bins"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_a_policy_holds(kind):
    check_policy(make(kind), observations(5))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_equal(kind, tmp_path):
    policy, data = make(kind), observations(5)
    save_policy(tmp_path / "policy", policy)
    again = load_policy(tmp_path / "policy")
    with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
        expected, got = policy(data.clone()), again(data.clone())
    for key in ("action_tokens", "action_chunk", "log_probs", "element_log_probs"):
        assert torch.equal(expected[key], got[key])


def batch(policy, n=12, seed=0):
    """Frames with the expert's chunks, padded past the end of some episodes."""
    data = observations(n, seed)
    data["action_chunk"] = CHUNKS[:n].clone()
    data["action_is_pad"] = torch.zeros(n, 8, dtype=torch.bool)
    data["action_is_pad"][::3, 5:] = True
    return policy.make_target_transform()(data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_under_the_padding_reaches_no_token_that_counts(kind):
    policy = make(kind)
    data = batch(policy)
    other = data.clone()
    other["action_chunk"][::3, 5:] = 77.0
    other = policy.make_target_transform()(other)
    assert torch.equal(other["action_tokens"], data["action_tokens"])
    assert TokenBCLoss(policy)(data)["loss_bc"].item() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_the_cloning_loss_holds(kind):
    policy = make(kind)
    check_loss(TokenBCLoss(policy), batch(policy).exclude("action_chunk"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cloning_loss_is_the_mean_over_tokens_that_count(kind):
    policy = make(kind)
    data = batch(policy)
    found = TokenBCLoss(policy)(data)["loss_bc"]
    total, count = 0.0, 0
    elements = policy.token_log_probs(data)
    first = policy.action_tokenizer.first_steps
    for row in range(12):
        last = 4 if row % 3 == 0 else 7
        for place in range(elements.shape[-1]):
            is_end = (
                data["action_tokens"][row, place] == policy.action_tokenizer.end_token
            )
            if not is_end and first[place] <= last:
                total, count = total - elements[row, place].item(), count + 1
    assert found.item() == pytest.approx(total / count, rel=1e-5)
    assert TokenBCLoss(policy).count_elements(data).item() == count


@pytest.mark.parametrize("kind", KINDS)
def test_padded_tokens_have_a_gradient_of_exactly_zero(kind):
    """Each place has weights of its own: those of places that do not count get none."""
    policy = make(kind)
    data = batch(policy)[::3]  # all of them padded from step 5
    TokenBCLoss(policy)(data)["loss_bc"].backward()
    gradient = policy.places.weight.grad
    steps = ~data["action_is_pad"]
    counted = policy.counted_tokens(data["action_tokens"], steps).any(0)
    assert (~counted).any()
    assert torch.equal(gradient[~counted], torch.zeros_like(gradient[~counted]))
    assert gradient[counted].abs().sum(-1).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_in_ppo_tokens_that_do_not_count_have_a_gradient_of_exactly_zero(kind):
    policy = make(kind)
    data = observations(6)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        data = policy(data)
    data["advantage"] = torch.linspace(-1, 1, 6).unsqueeze(-1)
    data["next", "is_executed"] = torch.zeros(6, 8, dtype=torch.bool)
    data["next", "is_executed"][:, :3] = True
    for granularity in ("chunk", "token"):
        policy.zero_grad()
        loss = ChunkPPOLoss(policy, granularity=granularity)
        out = loss(data)
        assert out["clip_fraction"].item() == out["kl_approx"].item() == 0.0
        out["loss_objective"].backward()
        counted = policy.counted_tokens(
            data["action_tokens"], data["next", "is_executed"]
        ).any(0)
        gradient = policy.places.weight.grad
        assert (~counted).any()
        assert gradient.any()
        assert torch.equal(gradient[~counted], torch.zeros_like(gradient[~counted]))


def test_ppo_refuses_what_a_token_is_not_of():
    policy = make()
    with torch.no_grad():
        data = policy(observations(2))
    data["advantage"] = torch.ones(2, 1)
    data["next", "is_executed"] = torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(SchemaError, match="'chunk' or 'token' for sequences of tokens"):
        ChunkPPOLoss(policy, granularity="action")(data)
    data["next", "is_executed"] = torch.ones(2, 16, dtype=torch.bool)
    with pytest.raises(SchemaError, match=r"bool \[2, 8\] at .* got .*\[2, 16\]"):
        ChunkPPOLoss(policy)(data)
    data["next", "is_executed"] = torch.ones(2, 8, dtype=torch.bool)
    data["dims"] = torch.zeros(2, 2, dtype=torch.bool)
    loss = ChunkPPOLoss(policy)
    loss.set_keys(dim_pad_mask="dims")
    with pytest.raises(SchemaError, match="dim_pad_mask=None for sequences"):
        loss(data)


def test_the_cloning_loss_refuses_padded_dimensions():
    policy = make()
    data = batch(policy)
    data["action_dim_is_pad"] = torch.zeros(12, 2, dtype=torch.bool)
    with pytest.raises(SchemaError, match="no padded dimensions for sequences"):
        TokenBCLoss(policy)(data)


@pytest.mark.parametrize("kind", ["fast", "beast"])
def test_the_transform_s_contract_holds_for_sequences(kind):
    tokenizer = make(kind).action_tokenizer
    data = observations(4)
    data["action_chunk"] = CHUNKS[:4]
    check_transform(
        ActionTokenizerTransform(tokenizer, in_key="action_chunk"),
        data,
        reads=["action_chunk"],
        writes=["action_tokens"],
    )


def test_a_tokenizer_of_other_chunks_is_refused():
    other = FASTActionTokenizer.fit(CHUNKS[:, :4], vocab_size=120)
    with pytest.raises(
        ValueError, match=r"\[H, A\] = \[8, 2\].* got a tokenizer of \["
    ):
        MarkovVLA(action_dim=2, chunk_size=8, action_tokenizer=other)


def test_there_is_no_mean_of_tokens():
    with (
        set_interaction_type(InteractionType.MEAN),
        pytest.raises(ValueError, match="Tokens have no mean"),
    ):
        make()(observations(2))


def test_bins_become_a_sequence():
    policy = make("bins")
    assert isinstance(policy.action_tokenizer, FlatActionTokenizer)
    assert policy(observations(2))["action_tokens"].shape == (2, 16)
