from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.schema import SchemaError, read_flag, read_flags, read_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (0, False),
        (1.0, True),
        (np.bool_(False), False),
        (np.float32(1), True),
        (np.array([0]), False),
        (np.array([[True]]), True),
        (torch.tensor([1.0]), True),
        (torch.tensor(False), False),
    ],
)
def test_bools_and_numbers_0_and_1_are_flags(value, expected):
    assert read_flag("Demo", "success", value) is expected


class Lies:
    def __bool__(self):
        return True

    def __array__(self, *args, **kwargs):
        raise OverflowError


@pytest.mark.parametrize(
    "value",
    [
        0.02,
        2,
        -1,
        math.nan,
        math.inf,
        "False",
        "True",
        b"\x01",
        None,
        {"subtask": False},
        [],
        [True, True],
        np.ones(2),
        np.zeros(0),
        1 + 0j,
        np.array([True], dtype=object),
        torch.ones(1, device="meta"),
        Lies(),
        object(),
    ],
)
def test_nothing_else_is_a_flag(value):
    with pytest.raises(SchemaError, match=r"a bool, 0 or 1 at success.*success=lambda"):
        read_flag("Demo", "success", value)


def test_another_flag_is_not_told_how_to_declare_success():
    with pytest.raises(SchemaError, match=r"got 0\.5 \(float\)\. Wrap the simulator"):
        read_flag("Demo", "terminated", 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39, "1", None, [1.0, 2.0]])
def test_a_reward_is_one_finite_number(value):
    assert read_number("Demo", "the reward", np.array([2])) == 2.0
    with pytest.raises(SchemaError, match="one finite number at the reward, got"):
        read_number("Demo", "the reward", value)


def test_flags_of_a_batch_are_bool_or_0_and_1():
    flags = torch.tensor([[1.0], [0.0]])
    assert read_flags("Demo", "success", flags).dtype == torch.bool
    for value in (0.02, 2.0, math.nan):
        flags[1] = value
        with pytest.raises(SchemaError, match="A share of a task is no success") as e:
            read_flags("Demo", "success", flags)
        assert e.value.env_indices == (1,)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(anything)
def test_anything_is_read_as_what_it_equals_or_refused(value):
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    is_number = isinstance(value, bool | int | float)
    try:
        flag = read_flag("Demo", "success", value)
    except SchemaError:
        assert not (is_number and value in (0, 1))
    else:
        assert is_number
        assert flag == value
