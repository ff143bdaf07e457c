"""TorchRL's PPO loss on our policies: decisions only, executed positions only."""

from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiStepActorWrapper, select_decisions
from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.policies import (
    BackboneConfig,
    FlowSDENoise,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
)
from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata, SchemaError
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.tokenizers import UniformActionTokenizer

SIZES = {
    "action_dim": 2,
    "chunk_size": 4,
    "backbone": BackboneConfig(state_dim=4, cameras=(), hidden=16),
}
HEADS = {
    "tokens": lambda: TinyTokenVLA(
        action_tokenizer=UniformActionTokenizer(16, low=-1.0, high=1.0), **SIZES
    ),
    "gaussian": lambda: TinyGaussianVLA(**SIZES),
    "flow": lambda: TinyFlowVLA(noise=FlowSDENoise(0.5), **SIZES),
}
every_head = pytest.mark.parametrize("head", HEADS)


def clip_loss(policy, **options):
    options.setdefault("entropy_bonus", False)
    loss = ClipPPOLoss(policy, critic_network=None, **options)
    loss.set_keys(
        action=policy.sample_key, sample_log_prob="log_probs", advantage="advantage"
    )
    return loss


def act(policy, batch=5):
    torch.manual_seed(0)
    data = TensorDict({"observation": {"state": torch.randn(batch, 4)}}, [batch])
    data["language_instruction"] = NonTensorStack(*["pick"] * batch)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = policy(data)
    data["advantage"] = torch.randn(batch, 1)
    executed = torch.arange(4) < torch.tensor([[1], [4], [2], [3], [1]])[:batch]
    return data.set(("next", "is_executed"), executed)


def moved(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def gradients(policy, loss, data):
    out = loss(data.clone())
    values = torch.autograd.grad(
        out["loss_objective"], list(policy.parameters()), allow_unused=True
    )
    return out, [value for value in values if value is not None]


@every_head
def test_clip_ppo_has_the_loss_and_gradient_of_chunk_ppo(head):
    torch.manual_seed(1)
    policy = HEADS[head]()
    data = act(policy)
    moved(policy)
    theirs, their_gradients = gradients(policy, clip_loss(policy), data)
    ours, our_gradients = gradients(policy, ChunkPPOLoss(policy), data)
    for name in ("loss_objective", "clip_fraction"):
        torch.testing.assert_close(theirs[name], ours[name])
    assert len(our_gradients) > 5
    torch.testing.assert_close(their_gradients, our_gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bonus", [False, True])
def test_what_was_not_executed_has_no_influence(bonus):
    policy = HEADS["tokens"]()
    data = act(policy)
    moved(policy)
    options = {"entropy_bonus": bonus, "entropy_coeff": 0.1}
    first = clip_loss(policy, **options)(data.clone())
    other = data.clone()
    unexecuted = ~data["next", "is_executed"]
    other["action_tokens"][unexecuted] = (other["action_tokens"][unexecuted] + 7) % 16
    second = clip_loss(policy, **options)(other)
    for name in ("loss_objective", "entropy") if bonus else ("loss_objective",):
        assert torch.equal(first[name], second[name])
    whole = data.exclude(("next", "is_executed"))
    changed = clip_loss(policy, **options)(whole)["loss_objective"]
    assert not torch.equal(first["loss_objective"], changed)


@pytest.mark.parametrize("interval", [1, 4])
@every_head
def test_a_whole_rollout_raises_and_its_decisions_start_at_ratio_one(head, interval):
    torch.manual_seed(0)
    policy = HEADS[head]()
    env = TransformedEnv(
        ToyVLAEnv(action_dim=2, state_dim=4, batch_size=[4], seed=0), InitTracker()
    )
    executor = MultiStepActorWrapper(policy, replan_interval=interval)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(12, executor)
    flat = rollout.reshape(-1)
    flat["advantage"] = torch.ones(len(flat), 1)
    with pytest.raises(SchemaError, match=r"the steps of a rollout.*select_decisions"):
        clip_loss(policy)(flat)
    decisions = select_decisions(rollout, chunk_size=4)
    decisions["advantage"] = torch.randn(len(decisions), 1)
    out = clip_loss(policy)(decisions)
    assert out["clip_fraction"] == 0.0
    torch.testing.assert_close(
        out["loss_objective"], -decisions["advantage"].mean(), rtol=1e-5, atol=1e-6
    )


def test_a_policy_of_robot_space_knows_what_was_executed():
    stats = FeatureStatistics.from_samples
    space = ModelSpace(
        RobotDatasetMetadata(
            "d",
            action_statistics=stats(torch.randn(9, 2)),
            state_statistics=stats(torch.randn(9, 4)),
        )
    )
    policy = space.robot_policy(HEADS["gaussian"]())
    data = act(policy)
    moved(policy)
    theirs = clip_loss(policy)(data.clone())["loss_objective"]
    torch.testing.assert_close(theirs, ChunkPPOLoss(policy)(data)["loss_objective"])
    steps = data.exclude(("next", "is_executed"))
    with pytest.raises(SchemaError, match="select_decisions"):
        clip_loss(policy)(steps.set("is_decision", torch.ones(5, 1).bool()))


def test_decisions_without_the_terms_of_their_log_probability_raise():
    policy = HEADS["tokens"]()
    data = act(policy).exclude("element_log_probs")
    with pytest.raises(SchemaError, match="Keep what the policy wrote"):
        clip_loss(policy)(data)
