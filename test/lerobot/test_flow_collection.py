"""LeRobot's flow policies in TorchRL's collectors: what they collect is on-policy."""

from __future__ import annotations

import pytest
import torch
from tabletop_smolvla import make_tabletop_smolvla
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import (
    MultiAction,
    MultiStepActorWrapper,
    select_decisions,
)
from torchrl_vla.objectives import ChunkPPOLoss, recompute_log_probs
from torchrl_vla.testing import check_log_prob_consistency

pytestmark = pytest.mark.lerobot

ROWS = 3
#: Kernels round a row in another batch differently: measured 2e-6 of a log-density.
OTHER_BATCH = 1e-4


@pytest.fixture(scope="module")
def tabletop(tiny_vlm):
    """An environment with instruction ids, and an untrained SmolVLA for it."""
    env = TabletopEnv(ROWS, image_size=32, max_steps=9, seed=0)
    return env, make_tabletop_smolvla(tiny_vlm, env)


def collect(env, actor, steps):
    collector = Collector(
        env, actor, frames_per_batch=ROWS * steps, total_frames=ROWS * steps
    )
    (data,) = list(collector)
    collector.shutdown()
    return data


def test_collected_decisions_of_an_executor_are_on_policy(tabletop):
    env, policy = tabletop
    actor = MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps)
    rollout = collect(TransformedEnv(env, InitTracker()), actor, 12)
    decisions = select_decisions(rollout, chunk_size=policy.chunk_size)
    assert len(decisions) >= ROWS * 3
    check_log_prob_consistency(policy, decisions, tolerance=OTHER_BATCH)
    decisions["advantage"] = torch.ones(len(decisions), 1)
    recompute_log_probs(policy, decisions)
    assert ChunkPPOLoss(policy)(decisions)["max_ratio"] == 1


def test_collected_decisions_of_outer_steps_are_on_policy(tabletop):
    env, policy = tabletop
    outer = Compose(InitTracker(), MultiAction(policy.chunk_size))
    data = collect(TransformedEnv(env, outer), policy, 3)
    assert data["denoising_path"].shape == (ROWS, 3, 3, 6, 4)
    check_log_prob_consistency(policy, data.reshape(-1), tolerance=OTHER_BATCH)
