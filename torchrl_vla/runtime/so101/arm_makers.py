"""Makers of the simulated arm and its script, which the commands know by name."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101.arm_model import CAMERAS, PALETTE
from torchrl_vla.runtime.so101.hardware_effects import HardwareEffects
from torchrl_vla.runtime.so101.scripted_teleoperator import SO101Teleoperator
from torchrl_vla.runtime.so101.so101_robot import SO101Robot
from torchrl_vla.schema import RobotDatasetMetadata

#: The script sees the cubes of an arm of this process.
_made: weakref.WeakSet[SO101Robot] = weakref.WeakSet()


def make_so101_robot(
    target: str = "red",
    colors: Sequence[str] = tuple(PALETTE),
    cameras: Sequence[str] = CAMERAS,
    image_size: int = 64,
    rate_hz: float = 30.0,
    is_ideal: bool = False,
    seed: int = 0,
) -> SO101Robot:
    """Make a simulated arm in real time.

    Args:
        target: see :class:`SO101Robot`, as for the others.
        colors: of the cubes.
        cameras: ``"front"``, ``"wrist"``.
        image_size: side of the images in pixels.
        rate_hz: control rate.
        is_ideal: True = without latencies, speed limit and noise.
        seed: of the episode.

    Examples:
        >>> make_so101_robot(cameras=()).instruction
        'reach the red cube'
    """
    robot = SO101Robot(
        colors=colors,
        target=target,
        cameras=cameras,
        image_size=image_size,
        rate_hz=rate_hz,
        effects=HardwareEffects.none() if is_ideal else HardwareEffects(),
        seed=seed,
    )
    _made.add(robot)
    return robot


def make_so101_teleoperator(
    metadata: RobotDatasetMetadata,
    max_step_deg: float = 12.0,
    hands_off_s: float = 0.0,
) -> SO101Teleoperator:
    """Make the script that solves the task of an arm of this process.

    Args:
        metadata: of that arm.
        max_step_deg: see :class:`SO101Teleoperator`, as for the other.
        hands_off_s: so long it only watches.

    Raises:
        SettingsError: no arm of these metadata was made in this process.
    """
    arms = [robot for robot in _made if robot.metadata is metadata]
    if not arms:
        raise SettingsError(
            "make_so101_teleoperator: expected the metadata of an arm that "
            f"make_so101_robot made in this process, got {metadata.dataset_id!r}. The "
            "script moves no other robot: use --robot so101."
        )
    return SO101Teleoperator(
        arms[0], max_step_deg=max_step_deg, hands_off_s=hands_off_s
    )
