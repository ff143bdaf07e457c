"""Handover between a policy and a teleoperator, without a jump."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchrl_vla.runtime.control_loop import ControlLoop
from torchrl_vla.runtime.safety_gate import SafetyGate
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.schema import ExecutionError


def linear_path(start: Tensor, goal: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the poses ``[A]`` on a line, one per step; the last one is the goal.

    Args:
        start: ``[A]``.
        goal: ``[A]``; NaN = that dimension stays where it starts.
        steps: at least 1.

    Raises:
        ValueError: fewer steps.

    Examples:
        >>> for pose in linear_path(torch.zeros(2), torch.tensor([1.0, torch.nan]), 2):
        ...     print(pose)
        tensor([0.5000, 0.0000])
        tensor([1., 0.])
    """
    if steps < 1:
        raise ValueError(f"linear_path: expected steps >= 1, got {steps}.")
    goal = torch.where(goal.isnan(), start, goal)
    for step in range(1, steps):
        yield start + (goal - start) * (step / steps)
    yield goal.clone()


def move_robot(
    gate: SafetyGate, start: Tensor, goal: Tensor, loop: ControlLoop, duration_s: float
) -> None:
    """Move the robot on a line to a pose, through its gate and at the loop's rate.

    Args:
        gate: with a session.
        start: ``[A]``, where the robot is.
        goal: ``[A]``; NaN = that dimension stays.
        loop: of the rate; the motion ends with it.
        duration_s: of the motion.
    """
    steps = max(1, round(duration_s * loop.rate_hz))
    for pose in linear_path(start, goal, steps):
        if loop.should_end:
            return
        gate.send(pose, gate.origin_of(gate.observe()))
        loop.wait()


def move_teleoperator(
    teleoperator: Teleoperator,
    start: Tensor,
    goal: Tensor,
    loop: ControlLoop,
    duration_s: float,
) -> None:
    """Move a leader arm on a line to a pose, such as the robot's before a takeover.

    Args:
        teleoperator: with feedback.
        start: ``[A]``, where it is.
        goal: ``[A]``; NaN = that dimension stays.
        loop: of the rate; the motion ends with it.
        duration_s: of the motion.

    Raises:
        ExecutionError: it has no feedback.
    """
    if not teleoperator.has_feedback:
        raise ExecutionError(
            "move_teleoperator: expected a teleoperator with feedback, got "
            f"{type(teleoperator).__name__}, which nothing moves. Let the robot come "
            "to it: TeleoperatorPolicy(teleoperator, handover_s=...)."
        )
    for pose in linear_path(start, goal, max(1, round(duration_s * loop.rate_hz))):
        if loop.should_end:
            return
        teleoperator.follow(pose)
        loop.wait()
