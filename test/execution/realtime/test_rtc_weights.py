from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.execution.realtime.rtc_weights import (
    PREFIX_SCHEDULES,
    ExponentialPrefix,
    LinearPrefix,
    OnesPrefix,
    ZerosPrefix,
)


def test_linear_weights_fall_in_equal_steps_that_end_one_after_the_overlap():
    # d = 2, overlap 5: 1 1 3/4 2/4 1/4 0 0.
    weights = LinearPrefix()(2, 5, 7)
    assert weights.tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_exponential_weights_are_those_of_equation_five():
    e = math.e
    ramp = [c * (e**c - 1) / (e - 1) for c in (0.75, 0.5, 0.25)]
    weights = ExponentialPrefix()(2, 5, 7)
    assert weights.tolist() == pytest.approx([1, 1, *ramp, 0, 0])


def test_ones_hold_everything_that_the_old_chunk_covers():
    assert OnesPrefix()(2, 5, 7).tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_zeros_hold_what_is_frozen_alone():
    assert ZerosPrefix()(2, 5, 7).tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_without_delay_a_ramp_begins_below_one():
    assert LinearPrefix()(0, 3, 4).tolist() == [0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("schedule", PREFIX_SCHEDULES.values())
def test_nothing_is_held_where_the_old_chunk_covers_nothing(schedule):
    assert schedule(3, 0, 4).tolist() == [0, 0, 0, 0]


sizes = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12)).filter(
    lambda drawn: drawn[1] <= drawn[2]
)


def naive(name: str, frozen: int, overlap: int, chunk_size: int) -> list[float]:
    """The paper's cases, one position at a time."""
    frozen, weights = min(frozen, overlap), []
    for h in range(chunk_size):
        c = (overlap - h) / (overlap - frozen + 1)
        between = {"ones": 1, "zeros": 0, "linear": c}
        between["exp"] = c * (math.exp(c) - 1) / (math.e - 1)
        held = 1 if h < frozen else between[name]
        weights.append(held if h < overlap else 0)
    return weights


@pytest.mark.parametrize("name", PREFIX_SCHEDULES)
@given(drawn=sizes)
def test_every_schedule_agrees_with_the_papers_cases(name, drawn):
    weights = PREFIX_SCHEDULES[name](*drawn)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(naive(name, *drawn), abs=1e-6)


@pytest.mark.parametrize("name", PREFIX_SCHEDULES)
@given(drawn=sizes)
def test_weights_never_rise_and_stay_in_zero_to_one(name, drawn):
    weights = PREFIX_SCHEDULES[name](*drawn)
    assert (weights.diff() <= 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()


@pytest.mark.parametrize("schedule", PREFIX_SCHEDULES.values())
@pytest.mark.parametrize(("frozen", "overlap"), [(0, 5), (0, -1), (-1, 2)])
def test_an_overlap_that_no_chunk_has_is_refused(schedule, frozen, overlap):
    match = (
        rf"{type(schedule).__name__}: expected 0 <= overlap <= chunk_size .*{overlap}"
    )
    with pytest.raises(ValueError, match=match):
        schedule(frozen, overlap, 4)


def test_schedules_are_equal_by_kind_and_print_themselves():
    assert LinearPrefix() == LinearPrefix()
    assert LinearPrefix() != OnesPrefix()
    assert len({LinearPrefix(), LinearPrefix(), ZerosPrefix()}) == 2
    assert repr(ExponentialPrefix()) == "ExponentialPrefix()"
