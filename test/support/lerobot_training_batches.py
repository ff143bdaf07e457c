"""Wrapped policies of LeRobot's with batches to train them on."""

from __future__ import annotations

import torch
from lerobot_checkpoints import RECIPES, Made, make_policy, make_processors, observe
from tensordict import TensorDict

from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.transforms import ObservationHistory

TRAINED = [name for name in RECIPES if not name.startswith("tdmpc")]
ROWS = 4


def wrap(name: str, tiny_vlm=None, **changes) -> LeRobotPolicyWrapper:
    policy = make_policy(name, tiny_vlm, **changes)
    if name == "vqbet":
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    before, after = make_processors(policy)
    return LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(before, after))


def batch(name: str, policy: LeRobotPolicyWrapper, padded: bool = True) -> TensorDict:
    """Observations, their history, targets in robot space and a mask."""
    _, cameras, environment_state, _ = RECIPES[name]
    made = Made(None, cameras, environment_state, True)
    frames = observe(made, policy.history_size, ROWS, seed=5)
    history = ObservationHistory(policy.history_size)
    td = history.begin(frames[0])
    for frame in frames[1:]:
        td = history.follow(frame, td)
    steps = len(policy.target_steps)
    generator = torch.Generator().manual_seed(9)
    td["action_chunk"] = torch.randn(ROWS, steps, 7, generator=generator)
    lengths = torch.tensor([steps, steps - 1, 1, steps])
    is_pad = torch.arange(steps) >= lengths.unsqueeze(-1)
    td["action_is_pad"] = is_pad if padded else torch.zeros_like(is_pad)
    return td
