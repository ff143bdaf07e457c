from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.evaluation import wilson_interval


def test_published_intervals_are_met():
    # Brown, Cai and DasGupta (2001) and the usual tables, to three digits.
    assert wilson_interval(9, 10) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.161), abs=5e-4)
    assert wilson_interval(20, 20) == pytest.approx((0.839, 1.0), abs=5e-4)


COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_the_ends_solve_the_score_equation(counts):
    successes, n = counts
    rate, z = successes / n, 1.959963984540054
    for end in wilson_interval(successes, n):
        distance = abs(rate - end)
        assert distance == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-6)


@given(COUNTS)
def test_the_interval_mirrors_when_successes_and_failures_swap(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert 0.0 <= low <= successes / n <= high <= 1.0


def test_more_confidence_is_a_wider_interval():
    narrow, wide = (wilson_interval(7, 10, confidence=c) for c in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match=r"expected confidence in \(0, 1\), got"):
        wilson_interval(1, 2, confidence)


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="wilson_interval: expected"):
        wilson_interval(*counts)
