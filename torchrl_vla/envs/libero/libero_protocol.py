"""Record of the choices that published evaluations on LIBERO differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torchrl_vla.errors import SettingsError

#: How an image is shown: as the camera sees it; its mirror image, which is LIBERO's own
#: turned by 180 degrees, as the policies of LeRobot, openpi and OpenVLA get it; or
#: LIBERO's own, upside down.
Orientation = Literal["upright", "mirrored", "upside_down"]

#: Layout of the hand's rotation in the state.
RotationLayout = Literal["axis_angle", "quaternion_xyzw"]


@dataclass(frozen=True)
class LiberoProtocol:
    """Choose what differs between published evaluations on LIBERO.

    Args:
        max_steps: time limit; None = that of OpenVLA's evaluation for the suite:
            spatial 220, object 280, goal 300, 10 520, 90 400.
        settle_steps: steps in which the arm holds still before an episode begins, for
            the objects to fall. They do not count. Most published code has 10.
        rotation: layout of the hand's rotation in the state: ``"axis_angle"`` gives 8
            numbers, as in LeRobot and openpi, ``"quaternion_xyzw"`` 9.
        image_orientation: ``"upright"`` as the camera sees it; ``"mirrored"`` as the
            policies of LeRobot, openpi and OpenVLA get it, who turn LIBERO's images by
            180 degrees; ``"upside_down"`` as LIBERO returns it.
        quick_rendering: True = without anti-aliasing, shadows and reflections: twice
            as fast in software, and not LIBERO's pixels.
        initial_states: which of a task's official initial states evaluations begin
            from, in this order; None = all of them.

    Raises:
        SettingsError: a number is out of range, or there is no such choice.

    Examples:
        >>> LiberoProtocol(initial_states=range(30, 50)).initial_states[0]
        30
    """

    max_steps: int | None = None
    settle_steps: int = 10
    rotation: RotationLayout = "axis_angle"
    image_orientation: Orientation = "upright"
    quick_rendering: bool = False
    initial_states: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.initial_states is not None:
            object.__setattr__(self, "initial_states", tuple(self.initial_states))
        for name, smallest in (("settle_steps", 0), ("max_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise SettingsError(
                    f"LiberoProtocol: expected {name} >= {smallest}, got {value}. "
                    "Pass a number of steps."
                )
        for name, choices in (
            ("rotation", get_args(RotationLayout)),
            ("image_orientation", get_args(Orientation)),
        ):
            if getattr(self, name) not in choices:
                raise SettingsError(
                    f"LiberoProtocol: expected {name} of {choices}, got "
                    f"{getattr(self, name)!r}. Choose one."
                )
        if self.initial_states == ():
            raise SettingsError(
                "LiberoProtocol: expected at least one of initial_states, got none. "
                "Leave the argument out for all of a task's states."
            )
