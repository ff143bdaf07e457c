"""Rotations in the layouts of ``ROTATION_LAYOUTS``, by way of unit quaternions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from torchrl_vla.schema import SchemaError
from torchrl_vla.schema.conventions import ROTATION_LAYOUTS

#: Layouts whose numbers are angles, so that their unit matters.
ANGLE_LAYOUTS = ("euler_xyz", "axis_angle")

_QUATERNIONS = ("quaternion_wxyz", "quaternion_xyzw")
#: Below this length a quaternion, or a column of a matrix, has no direction.
_DEGENERATE = 1e-6
#: cos(pitch) below which roll and yaw turn about one axis (gimbal lock).
_LOCKED = 1e-9


def convert_rotation(value: Tensor, source: str, target: str) -> Tensor:
    """Convert rotations from one layout to another.

    The computation runs in float64; the result has the dtype of ``value``. Between the
    two quaternion layouts the numbers are only reordered. Elsewhere a quaternion comes
    out with a real part >= 0 and an axis-angle with an angle in ``[0, pi]``; the
    rotation is the same, whichever of its representations went in.

    Note:
        ``euler_xyz`` has no unique angles where the pitch is +-pi/2 (gimbal lock, taken
        to be where ``cos(pitch) < 1e-9``): yaw is then 0 and roll holds the rotation.

    Args:
        value: ``[..., n]``, angles in rad.
        source: its layout, of ``ROTATION_LAYOUTS``.
        target: layout of the result.

    Returns:
        ``[..., m]``.

    Raises:
        SchemaError: no rotation has these numbers (a quaternion of length 0, a
            rotation matrix with parallel or empty columns, a width that the layout
            does not have).

    Examples:
        >>> quarter_turn = torch.tensor([0.0, 0.0, torch.pi / 2])
        >>> six = convert_rotation(quarter_turn, "euler_xyz", "rotation_6d_columns")
        >>> six.round().long()
        tensor([ 0,  1,  0, -1,  0,  0])
        >>> convert_rotation(quarter_turn, "axis_angle", "quaternion_xyzw")
        tensor([0.0000, 0.0000, 0.7071, 0.7071])
    """
    for layout in (source, target):
        if layout not in ROTATION_LAYOUTS:
            raise SchemaError(
                f"convert_rotation: expected a layout of {list(ROTATION_LAYOUTS)}, got "
                f"{layout!r}."
            )
    if value.shape[-1] != ROTATION_LAYOUTS[source]:
        raise SchemaError(
            f"convert_rotation: expected [..., {ROTATION_LAYOUTS[source]}] for "
            f"{source!r}, got shape {tuple(value.shape)}."
        )
    if source == target:
        return value
    if source in _QUATERNIONS and target in _QUATERNIONS:
        return value.roll(-1 if source == "quaternion_wxyz" else 1, -1)
    return from_quaternion(to_quaternion(value, source), target).to(value.dtype)


def to_quaternion(value: Tensor, layout: str) -> Tensor:
    """Return unit quaternions, real part first, float64 ``[..., 4]``.

    Raises:
        SchemaError: no rotation has these numbers.
    """
    value = value.double()
    if layout in _QUATERNIONS:
        _check_length(value, layout)
        real_first = value if layout == "quaternion_wxyz" else value.roll(1, -1)
        return normalize(real_first, dim=-1)
    if layout == "axis_angle":
        angle = value.norm(dim=-1, keepdim=True)
        # sin(x/2) / x, which torch.sinc knows at x = 0.
        return torch.cat([(angle / 2).cos(), value * _half_sinc(angle)], -1)
    if layout == "euler_xyz":
        (a, b, c), (x, y, z) = (
            (value / 2).cos().unbind(-1),
            (value / 2).sin().unbind(-1),
        )
        parts = (
            a * b * c + x * y * z,
            x * b * c - a * y * z,
            a * y * c + x * b * z,
            a * b * z - x * y * c,
        )
        return torch.stack(parts, -1)
    first, second = value[..., :3], value[..., 3:]
    _check_length(first, layout)
    first = normalize(first, dim=-1)
    second = second - (first * second).sum(-1, keepdim=True) * first
    _check_length(second, layout)
    second = normalize(second, dim=-1)
    matrix = torch.stack([first, second, torch.linalg.cross(first, second)], -1)
    if layout == "rotation_6d_rows":
        matrix = matrix.mT
    return _quaternion_of(matrix)


def from_quaternion(quaternion: Tensor, layout: str) -> Tensor:
    """Return unit quaternions ``[..., 4]``, real part first, in another layout."""
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    if layout == "quaternion_wxyz":
        return quaternion
    if layout == "quaternion_xyzw":
        return quaternion.roll(-1, -1)
    if layout == "axis_angle":
        axis = quaternion[..., 1:]
        length = axis.norm(dim=-1, keepdim=True)
        angle = 2 * torch.atan2(length, quaternion[..., :1])
        return axis / _half_sinc(angle)
    matrix = _matrix_of(quaternion)
    if layout == "euler_xyz":
        return _euler_of(matrix)
    rows = matrix if layout == "rotation_6d_rows" else matrix.mT
    return rows[..., :2, :].flatten(-2)


def slerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Turn at constant speed from one unit quaternion to another, the shorter way.

    Args:
        first: ``[..., 4]``.
        second: ``[..., 4]``.
        weight: ``[..., 1]``, 0 = ``first``, 1 = ``second``.

    Examples:
        >>> ends = torch.eye(4)[:2]
        >>> slerp(ends[0], ends[1], torch.tensor([0.5]))
        tensor([0.7071, 0.7071, 0.0000, 0.0000])
    """
    dot = (first * second).sum(-1, keepdim=True)
    second = torch.where(dot < 0, -second, second)
    # atan2 of the chord lengths keeps its precision at small angles, unlike acos.
    angle = 2 * torch.atan2(
        (first - second).norm(dim=-1), (first + second).norm(dim=-1)
    )
    angle = angle.unsqueeze(-1)
    close = angle < _DEGENERATE
    sine = torch.where(close, 1.0, angle.sin())
    left = torch.where(close, 1 - weight, ((1 - weight) * angle).sin() / sine)
    right = torch.where(close, weight, (weight * angle).sin() / sine)
    return normalize(left * first + right * second, dim=-1)


def _half_sinc(angle: Tensor) -> Tensor:
    """Return ``sin(angle / 2) / angle``, 1/2 at 0."""
    return torch.sinc(angle / (2 * torch.pi)) / 2


def _check_length(value: Tensor, layout: str) -> None:
    short = value.norm(dim=-1) < _DEGENERATE
    if bool(short.any()):
        where = short.nonzero()[0].tolist()
        raise SchemaError(
            f"convert_rotation: expected rotations in layout {layout!r}, got numbers "
            f"that are none at index {where}: their length, or that of a column, is 0. "
            "Check the dimensions of the rotation in the metadata, and repair or drop "
            "these frames."
        )


def _matrix_of(quaternion: Tensor) -> Tensor:
    w, x, y, z = quaternion.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _quaternion_of(matrix: Tensor) -> Tensor:
    """Return the quaternion by the largest of its four squares."""
    m = matrix
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    wx, yz = m[..., 2, 1] - m[..., 1, 2], m[..., 2, 1] + m[..., 1, 2]
    wy, xz = m[..., 0, 2] - m[..., 2, 0], m[..., 0, 2] + m[..., 2, 0]
    wz, xy = m[..., 1, 0] - m[..., 0, 1], m[..., 1, 0] + m[..., 0, 1]
    xx, yy, zz = (1 + 2 * m[..., i, i] - trace for i in range(3))
    candidates = torch.stack(
        [
            torch.stack([1 + trace, wx, wy, wz], -1),
            torch.stack([wx, xx, xy, xz], -1),
            torch.stack([wy, xy, yy, yz], -1),
            torch.stack([wz, xz, yz, zz], -1),
        ],
        -2,
    )
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    return normalize(candidates.gather(-2, index).squeeze(-2), dim=-1)


def _euler_of(matrix: Tensor) -> Tensor:
    cosine = torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    pitch = torch.atan2(-matrix[..., 2, 0], cosine)
    locked = cosine < _LOCKED
    roll = torch.atan2(
        torch.where(locked, -matrix[..., 1, 2], matrix[..., 2, 1]),
        torch.where(locked, matrix[..., 1, 1], matrix[..., 2, 2]),
    )
    yaw = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([roll, pitch, torch.where(locked, 0.0, yaw)], -1)
