from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA, TinyVLA
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.tokenizers import UniformActionTokenizer

N, H, A = 3, 2, 2


class Table:
    """A distribution whose element log-probs are what the policy has learned."""

    def __init__(self, logits):
        self.logits = logits

    def element_log_probs(self, choice):
        return self.logits + 0.0 * choice

    def element_entropy(self):
        return -self.logits


class Bandit(TensorDictModuleBase):
    """One learned log-prob for every row, position and dimension."""

    in_keys, out_keys, sample_key = ["row"], ["choice"], "choice"

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(N, H, A))

    def get_dist(self, td):
        return Table(self.table[td["row"]])


def batch() -> TensorDict:
    return TensorDict(
        {
            "row": torch.arange(N),
            "choice": torch.zeros(N, H, A),
            "element_log_probs": torch.zeros(N, H, A),
            "advantage": torch.tensor([[1.0], [-2.0], [3.0]]),
            "next": {
                "is_executed": torch.tensor([[True, True], [True, False], [True, True]])
            },
        },
        batch_size=[N],
    )


def policy_at(values: list) -> Bandit:
    policy = Bandit()
    with torch.no_grad():
        policy.table.copy_(torch.tensor(values))
    return policy


def gain(log_ratio: float, advantage: float, low=0.2, high=0.2) -> float:
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - low), 1 + high)
    return min(ratio * advantage, clipped * advantage)


VALUES = [[[0.1, 0.2], [0.3, -0.1]], [[-0.4, 0.1], [9.0, 9.0]], [[0.0, 0.0], [0.1, 0]]]
EXECUTED = [[True, True], [True, False], [True, True]]
ADVANTAGE = [1.0, -2.0, 3.0]


def units(granularity):
    """The (log-ratio, advantage) of every unit that was executed."""
    for row, (executed, advantage) in enumerate(zip(EXECUTED, ADVANTAGE)):
        actions = [VALUES[row][h] for h in range(H) if executed[h]]
        if granularity == "chunk":
            yield sum(sum(action) for action in actions), advantage
        elif granularity == "action":
            yield from ((sum(action), advantage) for action in actions)
        else:
            yield from ((value, advantage) for action in actions for value in action)


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
@pytest.mark.parametrize("clip", [0.2, (0.1, 0.3)])
def test_the_objective_is_the_clipped_mean_over_executed_units(granularity, clip):
    low, high = (clip, clip) if isinstance(clip, float) else clip
    gains = [gain(ratio, adv, low, high) for ratio, adv in units(granularity)]
    ratios = [math.exp(ratio) for ratio, _ in units(granularity)]
    out = ChunkPPOLoss(policy_at(VALUES), granularity=granularity, clip_epsilon=clip)(
        batch()
    )
    torch.testing.assert_close(
        out["loss_objective"], torch.tensor(-sum(gains) / len(gains))
    )
    clipped = [not 1 - low <= ratio <= 1 + high for ratio in ratios]
    torch.testing.assert_close(
        out["clip_fraction"], torch.tensor(sum(clipped) / len(clipped))
    )
    torch.testing.assert_close(
        out["kl_approx"],
        torch.tensor(sum(r - 1 - math.log(r) for r in ratios) / len(ratios)),
    )
    torch.testing.assert_close(out["max_ratio"], torch.tensor(max(ratios)))


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
def test_what_was_not_executed_has_exactly_no_gradient(granularity):
    policy = policy_at(VALUES)
    loss = ChunkPPOLoss(
        policy, granularity=granularity, entropy_coeff=0.1, reference_kl_coeff=0.1
    )
    data = batch().set("reference_log_probs", torch.full((N, H, A), 0.05))
    out = loss(data)
    total = sum(out[key] for key in loss.out_keys if key.startswith("loss_"))
    (gradient,) = torch.autograd.grad(total, loss.parameters())
    executed = data["next", "is_executed"].unsqueeze(-1).expand(N, H, A)
    assert (gradient[~executed] == 0).all()
    # row 1, position 0 is beyond the clip range, so the objective has none there
    assert (gradient[0] != 0).all()


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_was_not_executed_has_no_influence(granularity, poison):
    loss = ChunkPPOLoss(policy_at(VALUES), granularity=granularity)
    expected = loss(batch())
    data = batch()
    data["element_log_probs"][1, 1] = poison
    for key, value in loss(data).items():
        assert torch.equal(value, expected[key]), key


def test_dimensions_that_the_robot_lacks_do_not_count():
    loss = ChunkPPOLoss(policy_at(VALUES), granularity="token")
    loss.set_keys(dim_pad_mask="action_dim_is_pad")
    lacks = torch.tensor([[False, True], [False, False], [False, False]])
    out = loss(batch().set("action_dim_is_pad", lacks))
    (gradient,) = torch.autograd.grad(out["loss_objective"], loss.parameters())
    assert (gradient[0, :, 1] == 0).all()
    assert gradient[0, 0, 0] != 0
    with pytest.raises(SchemaError, match=r"expected a key of padded dimensions"):
        ChunkPPOLoss(policy_at(VALUES))(batch().set("action_dim_is_pad", lacks))


def test_entropy_is_the_mean_over_executed_elements():
    out = ChunkPPOLoss(policy_at(VALUES), entropy_coeff=0.5)(batch())
    values = [v for row in range(N) for h in range(H) for v in VALUES[row][h]]
    mean = -(sum(values) - 18.0) / (len(values) - 2)  # row 1, position 1 is out
    torch.testing.assert_close(out["entropy"], torch.tensor(mean))
    torch.testing.assert_close(out["loss_entropy"], torch.tensor(-0.5 * mean))


def test_the_reference_kl_is_schulman_s_third_estimate():
    reference = 0.3
    data = batch().set("reference_log_probs", torch.full((N, H, A), reference))
    out = ChunkPPOLoss(policy_at(VALUES), reference_kl_coeff=2.0)(data)
    values = [v for ratio, _ in units("token") for v in [ratio]]
    terms = [math.exp(reference - v) - (reference - v) - 1 for v in values]
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(out["reference_kl"], torch.tensor(expected))
    torch.testing.assert_close(out["loss_reference_kl"], torch.tensor(2 * expected))


def test_the_critic_s_loss_is_over_decisions_that_were_executed():
    critic = TensorDictModule(nn.Linear(1, 1), ["state"], ["state_value"])
    with torch.no_grad():
        critic.module.weight.fill_(1.0)
        critic.module.bias.zero_()
    loss = ChunkPPOLoss(
        policy_at(VALUES), critic, critic_coeff=0.5, loss_critic_type="l2"
    )
    data = batch()
    data["next", "is_executed"][2] = False
    data["state"] = torch.tensor([[1.0], [2.0], [50.0]])
    data["value_target"] = torch.tensor([[4.0], [1.0], [0.0]])
    out = loss(data)
    torch.testing.assert_close(out["loss_critic"], torch.tensor(0.5 * (9 + 1) / 2))


def tiny_policy() -> TinyTokenVLA:
    torch.manual_seed(0)
    return TinyTokenVLA(
        action_dim=2,
        chunk_size=3,
        action_tokenizer=UniformActionTokenizer(5, low=-1.0, high=1.0),
        backbone=BackboneConfig(state_dim=4, cameras=(), hidden=16),
    )


def tiny_batch(policy, rows: int, seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    data = TensorDict(
        {"observation": {"state": torch.randn(rows, 4, generator=generator)}},
        batch_size=[rows],
    ).set("language_instruction", ["push"] * rows)
    with torch.no_grad():
        data = policy(data)
    data["advantage"] = torch.randn(rows, 1, generator=generator)
    data["next", "is_executed"] = torch.ones(rows, 3, dtype=torch.bool)
    return data


@given(rows=st.integers(1, 9), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_a_wholly_executed_chunk_has_torchrl_s_loss(rows, seed):
    policy = tiny_policy()
    data = tiny_batch(policy, rows, seed)
    with torch.no_grad():
        policy.backbone.out.bias += torch.linspace(-0.3, 0.3, 30)
    ours = ChunkPPOLoss(policy)(data)
    peer = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    peer.set_keys(action="action_tokens", sample_log_prob="log_probs")
    theirs = peer(data)
    for key in ("loss_objective", "clip_fraction"):
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
def test_with_unchanged_weights_nothing_is_clipped(granularity):
    policy = tiny_policy()
    data = tiny_batch(policy, 7, 1)
    out = ChunkPPOLoss(policy, granularity=granularity)(data[[6, 1, 4]])
    assert out["clip_fraction"].item() == 0.0
    assert out["kl_approx"].item() == 0.0
    assert out["max_ratio"].item() == 1.0


def test_a_deterministic_policy_is_refused():
    policy = TinyVLA(
        action_dim=2, chunk_size=3, backbone=BackboneConfig(state_dim=4, cameras=())
    )
    with pytest.raises(TypeError, match=r"got TinyVLA without get_dist"):
        ChunkPPOLoss(policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "episode"}, r"expected granularity of .*, got 'episode'"),
        ({"entropy_coeff": -1.0}, r"expected entropy_coeff >= 0, got -1\.0"),
        ({"reference_kl_coeff": -1.0}, r"expected reference_kl_coeff >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChunkPPOLoss(Bandit(), **options)


@pytest.mark.parametrize(
    "key", ["choice", "element_log_probs", "advantage", ("next", "is_executed")]
)
def test_a_missing_key_is_named(key):
    data = batch()
    del data[key]
    name = str(key).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        MissingKeyError, match=rf"ChunkPPOLoss: expected .* at '?{name}"
    ):
        ChunkPPOLoss(Bandit())(data)


def test_a_mask_of_another_shape_or_dtype_is_refused():
    data = batch()
    data["next", "is_executed"] = torch.ones(N, H + 1, dtype=torch.bool)
    with pytest.raises(SchemaError, match=r"expected bool \[3, 2\] .*got torch.bool"):
        ChunkPPOLoss(Bandit())(data)
    data["next", "is_executed"] = torch.ones(N, H)
    with pytest.raises(SchemaError, match=r"expected bool \[3, 2\] .*torch.float32"):
        ChunkPPOLoss(Bandit())(data)
    data["next", "is_executed"] = torch.zeros(N, H, dtype=torch.bool)
    with pytest.raises(SchemaError, match=r"Nothing was executed, or the polarity"):
        ChunkPPOLoss(Bandit())(data)


def test_log_probs_of_the_whole_chunk_are_refused():
    data = batch()
    data["element_log_probs"] = torch.zeros(N)
    with pytest.raises(SchemaError, match=r"expected log-probabilities \[3, 2, 2\]"):
        ChunkPPOLoss(Bandit())(data)


def test_an_advantage_without_its_last_dimension_is_refused():
    data = batch()
    data["advantage"] = torch.zeros(N)
    with pytest.raises(SchemaError, match=r"expected an advantage \[3, 1\]"):
        ChunkPPOLoss(Bandit())(data)


def test_decisions_with_a_time_dimension_are_refused():
    with pytest.raises(SchemaError, match=r"expected a batch of decisions \[N\]"):
        ChunkPPOLoss(Bandit())(batch().reshape(1, N))
