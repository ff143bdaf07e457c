from __future__ import annotations

from itertools import product
from math import pi, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.schema import SchemaError
from torchrl_vla.schema.conventions import ROTATION_LAYOUTS
from torchrl_vla.transforms.conversions.rotations import (
    convert_rotation,
    from_quaternion,
    slerp,
    to_quaternion,
)

HALF = sqrt(0.5)
#: A quarter turn about z, in every layout, by hand.
QUARTER_TURN = {
    "euler_xyz": (0.0, 0.0, pi / 2),
    "axis_angle": (0.0, 0.0, pi / 2),
    "quaternion_wxyz": (HALF, 0.0, 0.0, HALF),
    "quaternion_xyzw": (0.0, 0.0, HALF, HALF),
    # The matrix is [[0, -1, 0], [1, 0, 0], [0, 0, 1]].
    "rotation_6d_rows": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
    "rotation_6d_columns": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
}


def scipy_rotation():
    return pytest.importorskip("scipy.spatial.transform").Rotation


def in_scipy(value, layout):
    rotation, value = scipy_rotation(), value.numpy()
    match layout:
        case "euler_xyz":
            return rotation.from_euler("xyz", value)
        case "axis_angle":
            return rotation.from_rotvec(value)
        case "quaternion_wxyz":
            return rotation.from_quat(value[:, [1, 2, 3, 0]])
        case "quaternion_xyzw":
            return rotation.from_quat(value)
    matrix = to_matrix(torch.as_tensor(value), layout)
    return rotation.from_matrix(matrix.numpy())


def to_matrix(six, layout):
    a, b = six[:, :3], six[:, 3:]
    stacked = torch.stack([a, b, torch.linalg.cross(a, b)], 1)
    return stacked if layout == "rotation_6d_rows" else stacked.mT


def random_rotations(layout, n=200):
    generator = torch.Generator().manual_seed(0)
    quaternions = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    quaternions = quaternions / quaternions.norm(dim=-1, keepdim=True)
    quaternions = quaternions * quaternions[:, :1].sign()  # as conversions give them
    return convert_rotation(quaternions, "quaternion_wxyz", layout)


PAIRS = list(product(ROTATION_LAYOUTS, ROTATION_LAYOUTS))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_quarter_turn_is_what_it_is_by_hand(source, target):
    value = torch.tensor(QUARTER_TURN[source], dtype=torch.float64)
    expected = torch.tensor(QUARTER_TURN[target], dtype=torch.float64)
    torch.testing.assert_close(convert_rotation(value, source, target), expected)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_scipy_sees_the_same_rotation_before_and_after(source, target):
    value = random_rotations(source)
    converted = convert_rotation(value, source, target)
    apart = in_scipy(value, source).inv() * in_scipy(converted, target)
    assert apart.magnitude().max() < 1e-7


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_each_pair_is_a_pair_of_inverses(source, target):
    value = random_rotations(source)
    there = convert_rotation(value, source, target)
    torch.testing.assert_close(convert_rotation(there, target, source), value)


@pytest.mark.parametrize("pitch", [pi / 2, -pi / 2])
@pytest.mark.parametrize(("roll", "yaw"), [(0.3, 0.0), (0.3, 0.9), (-2.0, 1.0)])
def test_gimbal_lock_keeps_the_rotation_and_sets_yaw_to_zero(roll, pitch, yaw):
    value = torch.tensor([roll, pitch, yaw], dtype=torch.float64)
    matrix = convert_rotation(value, "euler_xyz", "rotation_6d_columns")
    angles = convert_rotation(matrix, "rotation_6d_columns", "euler_xyz")
    assert angles[2] == 0
    again = convert_rotation(angles, "euler_xyz", "rotation_6d_columns")
    torch.testing.assert_close(again, matrix, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-3, pi - 1e-7, pi])
def test_small_and_half_turns_keep_their_angle(angle):
    value = torch.tensor([0.0, angle, 0.0], dtype=torch.float64)
    quaternion = convert_rotation(value, "axis_angle", "quaternion_wxyz")
    back = convert_rotation(quaternion, "quaternion_wxyz", "axis_angle")
    torch.testing.assert_close(back, value, rtol=1e-12, atol=1e-15)


def test_both_signs_of_a_quaternion_are_one_rotation():
    value = random_rotations("quaternion_wxyz")
    for layout in ("axis_angle", "euler_xyz", "rotation_6d_rows"):
        torch.testing.assert_close(
            convert_rotation(-value, "quaternion_wxyz", layout),
            convert_rotation(value, "quaternion_wxyz", layout),
        )


def test_float32_and_integers_of_batches_keep_dtype_and_shape():
    value = torch.zeros(2, 5, 3)
    converted = convert_rotation(value, "axis_angle", "rotation_6d_rows")
    assert converted.shape == (2, 5, 6)
    assert converted.dtype == torch.float32


@pytest.mark.parametrize(
    ("value", "layout"),
    [
        ([0.0, 0.0, 0.0, 0.0], "quaternion_wxyz"),
        ([0.0] * 6, "rotation_6d_rows"),
        ([1.0, 0.0, 0.0, 2.0, 0.0, 0.0], "rotation_6d_columns"),
    ],
)
def test_numbers_that_are_no_rotation_raise(value, layout):
    value = torch.tensor([[1.0, 0, 0, 0] if len(value) == 4 else [1.0, 0, 0, 0, 1, 0],
                          value])  # fmt: skip
    with pytest.raises(SchemaError, match=rf"{layout}.*at index \[1\].*repair or drop"):
        convert_rotation(value, layout, "axis_angle")


def test_an_unknown_layout_or_a_wrong_width_raises():
    with pytest.raises(SchemaError, match=r"layout of .*got 'euler_zyx'"):
        convert_rotation(torch.zeros(3), "euler_zyx", "axis_angle")
    with pytest.raises(SchemaError, match=r"expected \[..., 4\].*got shape \(3,\)"):
        convert_rotation(torch.zeros(3), "quaternion_wxyz", "axis_angle")


def test_slerp_agrees_with_scipy_and_takes_the_shorter_way():
    first, second = random_rotations("quaternion_wxyz").chunk(2)
    weight = torch.linspace(0, 1, len(first), dtype=torch.float64).unsqueeze(-1)
    ours = slerp(first, second, weight)
    start, end = (in_scipy(q, "quaternion_wxyz") for q in (first, second))
    step = (start.inv() * end).as_rotvec() * weight.numpy()
    expected = start * scipy_rotation().from_rotvec(step)
    apart = expected.inv() * in_scipy(ours, "quaternion_wxyz")
    assert apart.magnitude().max() < 1e-7


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_any_angles_give_a_unit_quaternion(angles):
    value = torch.tensor(angles, dtype=torch.float64)
    for layout in ("axis_angle", "euler_xyz"):
        quaternion = to_quaternion(value, layout)
        assert abs(quaternion.norm().item() - 1) < 1e-12
        assert from_quaternion(quaternion, layout).isfinite().all()
