"""Units of the SO-101 arm: LeRobot's at the border, rad in the model."""

from __future__ import annotations

import numpy as np

from torchrl_vla.runtime.so101.arm_model import JOINTS
from torchrl_vla.schema import GripperConvention, RobotDatasetMetadata

#: Limits of the joints in deg; of the gripper in percent: 0 closed, 100 open.
LOW = (-110.0, -100.0, -96.8, -95.0, -157.2, 0.0)
HIGH = (110.0, 100.0, 96.8, 95.0, 162.7, 100.0)

#: The model's gripper, closed and open, in rad.
_CLOSED_RAD, _OPEN_RAD = -0.1745, 1.7453
_PERCENT_RAD = (_OPEN_RAD - _CLOSED_RAD) / 100

_SCALE = np.array([*(5 * [np.pi / 180]), _PERCENT_RAD])
_OFFSET = np.array([*(5 * [0.0]), _CLOSED_RAD])


def to_radians(joints: np.ndarray) -> np.ndarray:
    """Convert deg and percent ``[..., 6]`` into the model's rad.

    Examples:
        >>> to_radians(np.array([0.0, 0.0, 0.0, 0.0, 180.0, 100.0])).round(3)
        array([0.   , 0.   , 0.   , 0.   , 3.142, 1.745])
    """
    return joints * _SCALE + _OFFSET


def from_radians(joints: np.ndarray) -> np.ndarray:
    """Convert the model's rad ``[..., 6]`` into deg and percent."""
    return (joints - _OFFSET) / _SCALE


def make_arm_metadata(
    cameras: tuple[str, ...], image_size: int, rate_hz: float
) -> RobotDatasetMetadata:
    """Make the record of the arm: LeRobot's names, units and order of an SO-101."""
    names = tuple(f"{joint}.pos" for joint in JOINTS)
    units = (*(5 * ("deg",)), "percent")
    return RobotDatasetMetadata(
        "so101",
        embodiment_id="so101",
        action_names=names,
        action_units=units,
        action_reference=6 * ("absolute",),
        action_space=(*(5 * ("joint",)), "gripper"),
        grippers=(GripperConvention(dim=5, open=100.0, closed=0.0),),
        action_low=LOW,
        action_high=HIGH,
        state_names=names,
        state_units=units,
        control_frequency_hz=rate_hz,
        cameras=cameras,
        image_sizes=len(cameras) * ((3, image_size, image_size),) or None,
        image_orientation="upright" if cameras else None,
    )
