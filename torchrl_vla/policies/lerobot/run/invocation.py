"""How LeRobot's policies are asked for a chunk without their shared queues."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from torchrl_vla.schema import SchemaError

_IMAGES = "observation.images"


class PolicyCall(ABC):
    """Ask a policy for the chunk of each row, whatever it was asked before.

    LeRobot's policies keep observations and actions in queues, one set per policy and
    not per environment. A call hands over everything that the chunk depends on and
    leaves nothing behind, so streams can be interleaved.

    Args:
        config: the policy's configuration.
    """

    #: True = the policy begins its search where the last one of the row ended.
    carries_plan = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(
        self, policy: Any, frames: list[dict[str, Any]], plan: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the chunks and the plans.

        Args:
            policy: LeRobot's policy.
            frames: preprocessed observations, the oldest first, ``[N, ...]``.
            plan: ``[N, horizon, A]`` of the rows' last calls; None = it carries none.

        Returns:
            The chunk ``[N, H, A]`` and the new plan, both in model space.
        """


class ChunkCall(PolicyCall):
    """Ask a policy whose chunk depends on the current observation alone."""

    def __call__(
        self, policy: Any, frames: list[dict[str, Any]], plan: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the policy's chunk."""
        return policy.predict_action_chunk(frames[-1]), None


class QueueCall(PolicyCall):
    """Fill the queues of a policy that reads its observations from them, and ask."""

    def __call__(
        self, policy: Any, frames: list[dict[str, Any]], plan: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the chunk of a policy that is reset, filled, asked and reset."""
        populate_queues = sys.modules["lerobot.policies.utils"].populate_queues
        policy.reset()
        try:
            for frame in frames:
                frame = self._stack_cameras(frame)
                policy._queues = populate_queues(policy._queues, frame)
            return policy.predict_action_chunk(frame), None
        finally:
            policy.reset()

    def _stack_cameras(self, frame: dict[str, Any]) -> dict[str, Any]:
        cameras = list(self.config.image_features)
        if not cameras:
            return frame
        images = torch.stack([frame[name] for name in cameras], dim=-4)
        return {**frame, _IMAGES: images}


class CodebookCall(QueueCall):
    """Ask VQ-BeT, whose actions are codes of a codebook that is trained first."""

    def __call__(
        self, policy: Any, frames: list[dict[str, Any]], plan: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the chunk; before the codebook is trained there is none."""
        if not policy.vqbet.action_head.vqvae_model.discretized:
            steps = self.config.n_vqvae_training_steps
            raise SchemaError(
                "LeRobotPolicyWrapper: expected VQ-BeT with a trained codebook, got "
                "one whose codes are still random: its actions would mean nothing. "
                f"Train it for more than n_vqvae_training_steps={steps} steps first."
            )
        return super().__call__(policy, frames, plan)


class PlannerCall(PolicyCall):
    """Ask TD-MPC, which plans time first and begins with its row's last plan.

    The plan of the last call travels in the tensordict. Zeros are a cold start, as in
    LeRobot, where nothing was planned before.
    """

    carries_plan = True

    @staticmethod
    def steps(config: Any) -> int:
        """Return the actions that LeRobot executes of one plan.

        Either the first one, ``n_action_repeats`` times, or ``n_action_steps`` of it.
        """
        return max(config.n_action_repeats, config.n_action_steps)

    def __call__(
        self, policy: Any, frames: list[dict[str, Any]], plan: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the first action repeated, or the plan's first actions."""
        populate_queues = sys.modules["lerobot.policies.utils"].populate_queues
        config = self.config
        frame = dict(frames[-1])
        if config.image_features:
            frame["observation.image"] = frame[next(iter(config.image_features))]
        policy.reset()
        try:
            if config.use_mpc:
                policy._prev_mean = plan.transpose(0, 1)
            policy._queues = populate_queues(policy._queues, frame)
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
