"""Invocation of LeRobot policies without their shared queues.

LeRobot's policies keep observations and actions in queues, one set per policy and not
per environment. A function here hands over everything that the chunk depends on and
leaves nothing behind, so streams can be interleaved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import Batch, Policy
from torchrl_vla.policies.lerobot.run.seeded_noise import SeededNoise
from torchrl_vla.schema import SchemaError

#: ``(policy, frames, plan, noise) -> (chunk, plan)``: preprocessed observations ``[N,
#: ...]``, the oldest first, and the plans ``[N, horizon, A]`` of the last calls, to
#: chunks ``[N, H, A]`` in model space and the new plans. None = the policy carries no
#: plan; it draws its noise from PyTorch's global generator.
PolicyCall: TypeAlias = Callable[
    [Policy, list[Batch], Tensor | None, SeededNoise | None],
    tuple[Tensor, Tensor | None],
]


def call_for_chunk(
    policy: Policy,
    frames: list[Batch],
    plan: Tensor | None,
    noise: SeededNoise | None = None,
) -> tuple[Tensor, None]:
    """Call a policy whose chunk depends on the current observation alone."""
    options = {} if noise is None else {"noise": noise.first}
    return policy.predict_action_chunk(frames[-1], **options), None


def call_with_queues(
    policy: Policy,
    frames: list[Batch],
    plan: Tensor | None,
    noise: SeededNoise | None = None,
) -> tuple[Tensor, None]:
    """Fill the observation queues of a policy, call it and empty them."""
    cameras = list(policy.config.image_features)
    policy.reset()
    try:
        for frame in frames:
            if cameras:
                images = torch.stack([frame[name] for name in cameras], dim=-4)
                frame = {**frame, "observation.images": images}
            _fill_queues(policy, frame)
        if noise is None:
            return policy.predict_action_chunk(frame), None
        with _generators_at(policy, noise):
            return policy.predict_action_chunk(frame, noise=noise.first), None
    finally:
        policy.reset()


def call_with_codebook(
    policy: Policy,
    frames: list[Batch],
    plan: Tensor | None,
    noise: SeededNoise | None = None,
) -> tuple[Tensor, None]:
    """Call VQ-BeT, whose actions are codes of a codebook that is trained first.

    Raises:
        SchemaError: the codebook is not trained yet.
    """
    if not policy.vqbet.action_head.vqvae_model.discretized:
        steps = policy.config.n_vqvae_training_steps
        raise SchemaError(
            "LeRobotPolicyWrapper: expected VQ-BeT with a trained codebook, got one "
            "whose codes are still random: its actions would mean nothing. Train it "
            f"for more than n_vqvae_training_steps={steps} steps first."
        )
    return call_with_queues(policy, frames, plan, noise)


def call_planner(
    policy: Policy,
    frames: list[Batch],
    plan: Tensor | None,
    noise: SeededNoise | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Call TD-MPC, which returns plans time first and begins from the last plan.

    Returns the plan's first action repeated, or its first actions. Plans of zeros are a
    cold start, as in LeRobot before the first plan.
    """
    config, frame = policy.config, dict(frames[-1])
    if config.image_features:
        frame["observation.image"] = frame[next(iter(config.image_features))]
    policy.reset()
    try:
        if config.use_mpc and plan is not None:
            policy._prev_mean = plan.transpose(0, 1)
        _fill_queues(policy, frame)
        actions = policy.predict_action_chunk(frame)
        mean = policy._prev_mean
    finally:
        policy.reset()
    if config.n_action_repeats > 1:
        actions = actions[:1].expand(config.n_action_repeats, -1, -1)
    else:
        actions = actions[: config.n_action_steps]
    plan = mean.transpose(0, 1) if config.use_mpc else plan
    return actions.transpose(0, 1), plan


def stack_frames(frames: list[Batch]) -> Batch:
    """Return observations as one batch: ``[N, ...]``, or ``[N, T, ...]`` of several."""
    if len(frames) == 1:
        return frames[0]
    return {
        name: torch.stack([frame[name] for frame in frames], 1)
        if isinstance(value, Tensor)
        else value
        for name, value in frames[-1].items()
    }


@contextmanager
def _generators_at(policy: Policy, noise: SeededNoise) -> Iterator[None]:
    """Let a diffusion draw the noise between its steps from each row's own generator.

    ``predict_action_chunk`` takes the initial noise only.
    """
    model = policy.diffusion
    sample = partial(model.conditional_sample, generator=noise.generators())
    model.conditional_sample = sample
    try:
        yield
    finally:
        del model.conditional_sample


def _fill_queues(policy: Policy, frame: Batch) -> None:
    populate_queues = sys.modules["lerobot.policies.utils"].populate_queues
    policy._queues = populate_queues(policy._queues, frame)


#: The calls by their name in the registry.
CALLS: dict[str, PolicyCall] = {
    "chunk": call_for_chunk,
    "queue": call_with_queues,
    "codebook": call_with_codebook,
    "planner": call_planner,
}
