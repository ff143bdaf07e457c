"""Makers of the robot and the teleoperator without hardware."""

from __future__ import annotations

from math import pi, sin

import torch
from torch import Tensor

from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.testing import FakeRobot, FakeRobotOptions, FakeTeleoperator


def make_fake_robot(
    num_joints: int = 2, rate_hz: float = 30.0, image_size: int | None = None
) -> FakeRobot:
    """Make a :class:`FakeRobot`; see :class:`FakeRobotOptions`."""
    return FakeRobot(FakeRobotOptions(num_joints, rate_hz, image_size))


def make_fake_teleoperator(
    metadata: RobotDatasetMetadata, period_s: float = 4.0
) -> FakeTeleoperator:
    """Make a teleoperator that waves: a sine of half the range, from the middle.

    Args:
        metadata: of the robot that it moves.
        period_s: of the sine.
    """
    low, high = torch.tensor([metadata.action_low, metadata.action_high])
    rate_hz = float(metadata.control_frequency_hz or 1.0)

    def wave(call: int) -> Tensor:
        part = sin(2 * pi * call / (rate_hz * period_s))
        return (low + high) / 2 + part * (high - low) / 4

    return FakeTeleoperator(metadata, wave)
