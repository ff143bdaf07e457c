from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.envs.libero.libero_script import rotation_vector
from torchrl_vla.envs.libero.libero_simulator import axis_angle, fixed_sign

numbers = st.lists(
    st.floats(-1, 1, allow_nan=False, allow_subnormal=False), min_size=4, max_size=4
).filter(lambda q: np.linalg.norm(q) > 0.1)


def matrix(xyzw):
    x, y, z, w = xyzw
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@given(numbers)
def test_both_signs_of_a_quaternion_are_one_state(wxyz):
    unit = np.array(wxyz) / np.linalg.norm(wxyz)
    one, other = fixed_sign(unit), fixed_sign(-unit)
    assert one[0] >= 0
    if one[0] > 0:
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(matrix(one), matrix(other))


@given(numbers)
def test_axis_angle_is_the_rotation_of_the_quaternion(wxyz):
    xyzw = fixed_sign(np.array(wxyz) / np.linalg.norm(wxyz))
    vector = axis_angle(xyzw)
    angle = np.linalg.norm(vector)
    assert angle <= 2 * np.pi + 1e-9
    half = np.array(
        [*np.sin(angle / 2) * vector / max(angle, 1e-12), np.cos(angle / 2)]
    )
    np.testing.assert_allclose(matrix(half), matrix(xyzw), atol=1e-6)


def test_a_quarter_turn_about_each_axis():
    quarter = np.sin(np.pi / 4)
    for axis in range(3):
        xyzw = np.zeros(4)
        xyzw[axis] = xyzw[3] = quarter
        expected = np.zeros(3)
        expected[axis] = np.pi / 2
        np.testing.assert_allclose(axis_angle(xyzw), expected, atol=1e-12)
        np.testing.assert_allclose(rotation_vector(matrix(xyzw)), expected, atol=1e-12)
