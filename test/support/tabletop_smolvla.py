"""An untrained SmolVLA for the tabletop, small enough for a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torchrl.envs import EnvBase

from torchrl_vla.policies import (
    FlowNoise,
    FlowSDENoise,
    LeRobotFlowPolicy,
    make_lerobot_policy,
)
from torchrl_vla.schema import FeatureStatistics


def make_tabletop_smolvla(
    vlm: Path, env: EnvBase, noise: FlowNoise | None = None
) -> LeRobotFlowPolicy:
    """Make one whose chunks have 6 actions, of which it executes 4."""
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
            "vlm_model_name": str(vlm),
        },
    )
    return LeRobotFlowPolicy(wrapper, noise=noise or FlowSDENoise(0.5))
