from __future__ import annotations

import pytest

from torchrl_vla.runtime import MonotonicClock
from torchrl_vla.testing import FakeClock


def test_the_monotonic_clock_wakes_at_the_instant_and_not_before():
    clock = MonotonicClock()
    wanted_s = clock.now_s() + 0.02
    clock.sleep_until_s(wanted_s)
    assert clock.now_s() >= wanted_s


@pytest.mark.parametrize("clock", [MonotonicClock(), FakeClock(5.0)])
def test_an_instant_of_the_past_is_not_waited_for(clock):
    before_s = clock.now_s()
    clock.sleep_until_s(before_s - 100)
    assert before_s <= clock.now_s() < before_s + 50


def test_a_fake_clock_does_not_go_back():
    clock = FakeClock(5.0)
    with pytest.raises(ValueError, match="seconds >= 0, got -1"):
        clock.advance_s(-1)
    clock.sleep_until_s(1.0)
    assert clock.now_s() == 5.0
