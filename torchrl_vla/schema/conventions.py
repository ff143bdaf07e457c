"""Conventions of an action's numbers: reference, gripper, rotation."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from torchrl_vla.errors import MetadataError

#: What a dimension of an action is measured from. ``absolute``: a target in the
#: robot's frame. ``delta``: from the previous command. ``relative``: from the state
#: seen when the chunk was made.
REFERENCES = ("absolute", "delta", "relative")

#: What a dimension of an action moves.
SPACES = ("joint", "end_effector", "gripper", "base")

#: How images show the scene: as the camera sees it, left and right exchanged, or upside
#: down (top and bottom exchanged).
ORIENTATIONS = ("upright", "mirrored", "upside_down")

#: About which axes a relative or delta rotation turns: those of the robot's base
#: (``target = step * before``) or its own, the tool's (``target = before * step``).
ROTATION_FRAMES = ("world", "body")

#: Numbers per rotation layout. ``euler_xyz`` is roll, pitch and yaw: turns about the
#: fixed axes x, then y, then z (SciPy's ``"xyz"``). ``axis_angle`` is the axis times
#: the angle. ``quaternion_wxyz`` has the real part first. ``rotation_6d_rows`` is the
#: first row of the matrix, then the second; ``rotation_6d_columns`` its columns.
ROTATION_LAYOUTS = {
    "euler_xyz": 3,
    "axis_angle": 3,
    "quaternion_wxyz": 4,
    "quaternion_xyzw": 4,
    "rotation_6d_rows": 6,
    "rotation_6d_columns": 6,
}


@dataclass(frozen=True)
class GripperConvention:
    """Say which dimension is a gripper and which end of its range is closed.

    Args:
        dim: index of the dimension in the action.
        open: the value that opens the gripper fully.
        closed: the value that closes it fully.

    Raises:
        MetadataError: a value is not finite, or open equals closed.

    Examples:
        >>> GripperConvention(dim=6, open=1.0, closed=-1.0).low
        -1.0
    """

    dim: int
    open: float
    closed: float

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise MetadataError(
                f"GripperConvention: expected dim >= 0, got {self.dim}. Count "
                "dimensions from the front."
            )
        if not (isfinite(self.open) and isfinite(self.closed)):
            raise MetadataError(
                "GripperConvention: expected finite values, got "
                f"open={self.open}, closed={self.closed}."
            )
        if self.open == self.closed:
            raise MetadataError(
                "GripperConvention: expected open and closed to differ, got "
                f"{self.open} for both. Say which end of the range is closed."
            )

    @property
    def low(self) -> float:
        """The smaller end of the range."""
        return min(self.open, self.closed)

    @property
    def high(self) -> float:
        """The larger end of the range."""
        return max(self.open, self.closed)


@dataclass(frozen=True)
class RotationConvention:
    """Say which dimensions are a rotation and how it is laid out.

    Args:
        dims: the dimensions of the action, in the layout's order.
        layout: one of ``ROTATION_LAYOUTS``.
        frame: of a rotation that is measured from another (``"relative"``,
            ``"delta"``): ``"world"`` where ``target = step * before``, ``"body"`` where
            ``target = before * step``; None = undeclared. It says nothing of an
            absolute one.

    Raises:
        MetadataError: unknown layout or frame, or not as many dimensions as it has.

    Examples:
        >>> RotationConvention(dims=(3, 4, 5), layout="axis_angle").layout
        'axis_angle'
    """

    dims: tuple[int, ...]
    layout: str
    frame: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if self.frame not in (None, *ROTATION_FRAMES):
            raise MetadataError(
                f"RotationConvention: expected a frame of {ROTATION_FRAMES}, got "
                f"{self.frame!r}. Leave it out where it is unknown."
            )
        if self.layout not in ROTATION_LAYOUTS:
            raise MetadataError(
                "RotationConvention: expected a layout of "
                f"{list(ROTATION_LAYOUTS)}, got {self.layout!r}."
            )
        size = ROTATION_LAYOUTS[self.layout]
        if len(set(self.dims)) != size or min(self.dims) < 0:
            raise MetadataError(
                f"RotationConvention: expected {size} different dimensions >= 0 for "
                f"{self.layout!r}, got {self.dims}."
            )


def broadcast_names(value: Any, size: int | None) -> tuple[str, ...] | None:
    """Expand one text to one per dimension; leave tuples and None alone."""
    if isinstance(value, str):
        return None if size is None else (value,) * size
    return None if value is None else tuple(value)
