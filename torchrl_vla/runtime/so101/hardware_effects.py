"""Latencies, limits and noise of simulated hardware."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf

from torchrl_vla.errors import SettingsError


@dataclass(frozen=True)
class HardwareEffects:
    """Choose what separates a simulated arm from an ideal one.

    The defaults are of the size that Feetech STS3215 servos on a serial bus and USB
    cameras have; they were not identified on an arm.

    Args:
        command_latency_s: from ``send`` to the servos.
        state_latency_s: age of the joint positions when they are read.
        camera_latency_s: age of an image when it is read, beside its wait for the next
            frame: frames are taken at the control rate.
        max_speed_deg_s: speed at which a servo's target moves to the commanded one.
        state_noise: standard deviation of the joint positions, degrees (gripper:
            percent).
        state_resolution: step of the encoders, degrees (gripper: percent); 0 =
            continuous. An encoder of 12 bits has 360 / 4096.
        image_noise: standard deviation of the images, in grey levels.

    Raises:
        SettingsError: a value is negative or not finite, or the speed is not positive.

    Examples:
        >>> HardwareEffects().command_latency_s
        0.01
        >>> HardwareEffects.none().max_speed_deg_s
        inf
    """

    command_latency_s: float = 0.01
    state_latency_s: float = 0.005
    camera_latency_s: float = 0.03
    max_speed_deg_s: float = 180.0
    state_noise: float = 0.05
    state_resolution: float = 360 / 4096
    image_noise: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = vars(self)[field.name]
            is_speed = field.name == "max_speed_deg_s"
            if not (value > 0 if is_speed else 0 <= value < inf):
                raise SettingsError(
                    f"HardwareEffects: expected {field.name} "
                    f"{'> 0' if is_speed else '>= 0 and finite'}, got {value}. "
                    "HardwareEffects.none() switches all effects off."
                )

    @classmethod
    def none(cls) -> HardwareEffects:
        """Return no effects: what is sent is what the servos get, at once."""
        return cls(0.0, 0.0, 0.0, inf, 0.0, 0.0, 0.0)
