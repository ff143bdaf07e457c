"""With unchanged weights, PPO has nothing to correct, whichever executor ran."""

from __future__ import annotations

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv
from torchrl.envs.utils import set_exploration_type
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, select_decisions
from torchrl_vla.policies import TinyTokenVLA
from torchrl_vla.tokenizers import UniformActionTokenizer

CHUNK = 6


def make_policy(env):
    torch.manual_seed(0)
    return TinyTokenVLA(
        action_dim=2,
        chunk_size=CHUNK,
        state_dim=2,
        action_tokenizer=UniformActionTokenizer(16, low=-1.0, high=1.0),
        instructions=env.instructions,
        hidden=32,
    )


def make_loss(policy):
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    loss.set_keys(
        action="action_tokens", sample_log_prob="log_probs", advantage="advantage"
    )
    return loss


def from_policy_side(env, policy, interval, by_collector):
    """Roll out one action a step; short episodes make the rows drift apart."""
    env = TransformedEnv(env, InitTracker())
    actor = MultiStepActorWrapper(policy, replan_interval=interval)
    if by_collector:
        collector = Collector(
            env,
            actor,
            frames_per_batch=8 * 40,
            total_frames=8 * 40,
            exploration_type=ExplorationType.RANDOM,
        )
        rollout = next(iter(collector))
        collector.shutdown()
    else:
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            rollout = env.rollout(40, actor, break_when_any_done=False)
    return select_decisions(rollout, chunk_size=CHUNK)


def from_environment_side(env, policy, executed):
    """Roll out one chunk a step."""
    env = TransformedEnv(env, MultiAction(CHUNK, n_executed=executed))
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return env.rollout(8, policy, break_when_any_done=False).reshape(-1)


EXECUTORS = {
    "open loop": lambda env, policy: from_policy_side(env, policy, None, False),
    "receding horizon": lambda env, policy: from_policy_side(env, policy, 4, False),
    "closed loop": lambda env, policy: from_policy_side(env, policy, 1, False),
    "in a collector": lambda env, policy: from_policy_side(env, policy, 4, True),
    "outer steps": lambda env, policy: from_environment_side(env, policy, None),
    "shorter outer steps": lambda env, policy: from_environment_side(env, policy, 4),
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_the_ratio_is_one_and_nothing_is_clipped(name):
    env = TabletopEnv(8, image_size=16, max_steps=11, seed=0)
    policy = make_policy(env)
    decisions = EXECUTORS[name](env, policy)
    assert len(decisions) >= 8 * 8
    decisions["advantage"] = torch.randn(len(decisions), 1)
    out = make_loss(policy)(decisions)
    assert out["clip_fraction"].item() == 0.0
    assert out["kl_approx"].item() == 0.0
    now = policy.log_prob(decisions)
    assert torch.equal(now, decisions["log_probs"])  # bit for bit: the ratio is 1
    # It would not be 1 with the weights changed in the least.
    with torch.no_grad():
        policy.backbone.out.bias[0] += 0.1
    assert not torch.equal(policy.log_prob(decisions), decisions["log_probs"])
