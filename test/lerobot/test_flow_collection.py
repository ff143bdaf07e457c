"""LeRobot's flow policies in TorchRL's collectors: what they collect is on-policy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import (
    MultiAction,
    MultiStepActorWrapper,
    select_decisions,
)
from torchrl_vla.objectives import ChunkPPOLoss, recompute_log_probs
from torchrl_vla.policies import FlowSDENoise, LeRobotFlowPolicy, make_lerobot_policy
from torchrl_vla.schema import FeatureStatistics
from torchrl_vla.testing import check_identity

pytestmark = pytest.mark.lerobot

ROWS = 3
#: Kernels round a row in another batch differently: measured 2e-6 of a log-density.
OTHER_BATCH = 1e-4


@pytest.fixture(scope="module")
def tabletop(tiny_vlm):
    """An environment with instruction ids, and an untrained SmolVLA for it."""
    env = TabletopEnv(ROWS, image_size=32, max_steps=9, seed=0)
    samples = torch.linspace(-1, 1, 101)[:, None].expand(-1, 2)
    statistics = FeatureStatistics.from_samples(samples)
    metadata = dataclasses.replace(
        env.metadata, action_statistics=statistics, state_statistics=statistics
    )
    torch.manual_seed(0)
    wrapper = make_lerobot_policy(
        "smolvla",
        metadata,
        image_sizes={None: (3, 32, 32)},
        instructions=env.instructions,
        config={
            "chunk_size": 6,
            "n_action_steps": 4,
            "num_steps": 2,
            "max_state_dim": 4,
            "max_action_dim": 4,
            "resize_imgs_with_padding": (128, 128),
            "load_vlm_weights": False,
            "num_vlm_layers": 2,
            "tokenizer_max_length": 48,
            "vlm_model_name": str(tiny_vlm),
        },
    )
    return env, LeRobotFlowPolicy(wrapper, noise=FlowSDENoise(0.5))


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
    check_identity(policy, decisions, tolerance=OTHER_BATCH)
    decisions["advantage"] = torch.ones(len(decisions), 1)
    recompute_log_probs(policy, decisions)
    assert ChunkPPOLoss(policy)(decisions)["max_ratio"] == 1


def test_collected_decisions_of_outer_steps_are_on_policy(tabletop):
    env, policy = tabletop
    outer = Compose(InitTracker(), MultiAction(policy.chunk_size))
    data = collect(TransformedEnv(env, outer), policy, 3)
    assert data["denoising_path"].shape == (ROWS, 3, 3, 6, 4)
    check_identity(policy, data.reshape(-1), tolerance=OTHER_BATCH)
