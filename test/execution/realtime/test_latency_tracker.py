from __future__ import annotations

import pytest

from torchrl_vla.execution import LatencyTracker


@pytest.mark.parametrize(
    ("latency_s", "rate_hz", "steps"),
    [
        (0.0, 30, 0),
        (0.001, 30, 1),
        (1 / 30, 30, 1),
        (0.1, 30, 3),  # 0.1 * 30 in floats is more than 3
        (0.15, 30, 5),
        (0.6, 30, 18),
        (0.15, 50, 8),
    ],
)
def test_seconds_are_rounded_up_to_steps(latency_s, rate_hz, steps):
    assert LatencyTracker.from_seconds(latency_s, rate_hz).delay_steps == steps


def test_the_largest_delay_of_the_last_calls_is_predicted():
    tracker, predicted = LatencyTracker(initial_steps=9, window=2), []
    for steps in (1, 4, 2, 2, 0, 0):
        tracker.record(steps)
        predicted.append(tracker.delay_steps)
    assert predicted == [1, 4, 4, 2, 2, 0]


def test_before_a_measurement_the_initial_steps_are_predicted():
    assert LatencyTracker(initial_steps=9).delay_steps == 9
    assert repr(LatencyTracker(4)) == "LatencyTracker(delay_steps=4)"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LatencyTracker(-1), r"initial_steps >= 0, got -1"),
        (lambda: LatencyTracker(window=0), r"positive int at argument 'window', got 0"),
        (lambda: LatencyTracker.from_seconds(-0.1, 30), r"latency_s >= 0 .* -0.1"),
        (lambda: LatencyTracker.from_seconds(0.1, 0), r"rate_hz > 0, got 0.1 and 0"),
        (lambda: LatencyTracker.from_seconds(float("nan"), 30), r"got nan and 30"),
    ],
)
def test_what_is_no_delay_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
