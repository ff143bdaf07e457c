from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.execution.guard.action_limits import ActionLimits, StepLimit

NUMBERS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8)


def test_without_limits_every_finite_number_is_legal_and_none_is_moved():
    limits = ActionLimits()
    actions = torch.tensor([[1e30], [torch.inf], [torch.nan]])
    assert limits.legal(actions).flatten().tolist() == [True, False, False]
    assert limits.clip(actions) is actions


def test_limits_are_per_dimension_and_in_the_dtype_of_the_actions():
    limits = ActionLimits((-0.1, 0.0), (0.7, 2.0))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        actions = torch.tensor([[-0.1, 2.0], [0.7, 3.0]], dtype=dtype)
        assert limits.legal(actions).tolist() == [[True, True], [True, False]]
        assert limits.clip(actions)[1, 1] == 2.0


def naive_clip(numbers, step, before):
    out = []
    for number in numbers:
        if before is not None:
            number = min(max(number, before - step), before + step)
        out.append(number)
        before = number
    return out


@settings(max_examples=50, deadline=None)
@given(NUMBERS, st.floats(0.125, 3, width=32), st.none() | st.floats(-4, 4, width=32))
def test_clipped_steps_are_those_of_a_naive_walk_and_legal(numbers, step, before):
    limit = StepLimit(step)
    actions = torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)
    start = None if before is None else torch.tensor([before], dtype=torch.float64)
    clipped = limit.clip(actions, start)
    assert clipped.flatten().tolist() == naive_clip(numbers, step, before)
    assert limit.legal(clipped, start).all()


def test_what_is_not_comparable_is_free():
    limit = StepLimit(1.0)
    actions = torch.tensor([[[5.0], [9.0]], [[5.0], [5.5]]])
    before, comparable = torch.zeros(2, 1), torch.tensor([True, False])
    assert limit.legal(actions, before, comparable).squeeze(-1).tolist() == [
        [False, False],
        [True, True],
    ]
    assert limit.clip(actions, before, comparable).squeeze(-1).tolist() == [
        [1.0, 2.0],
        [5.0, 5.5],
    ]
    nan = torch.tensor([[[0.0], [torch.nan]]])
    assert limit.legal(nan).flatten().tolist() == [True, False]


@pytest.mark.parametrize("number", [0.0, -1.0, torch.inf, torch.nan])
def test_a_largest_step_is_positive_and_finite(number):
    with pytest.raises(ValueError, match=r"positive, finite numbers .*'max_step'"):
        StepLimit((1.0, number))
