from __future__ import annotations

import os
import signal
import threading

import pytest

from torchrl_vla.runtime import ControlLoop, Spread
from torchrl_vla.testing import FakeClock


def run(loop: ControlLoop, clock: FakeClock, works_s: list[float]) -> list[float]:
    """Return the instants of the ticks."""
    begun = []
    for work_s in [*works_s, 0.0]:
        loop.wait()
        begun.append(round(clock.now_s(), 6))
        clock.advance_s(work_s)
    return begun


def test_work_within_a_period_keeps_the_grid():
    clock = FakeClock(5.0)
    loop = ControlLoop(10.0, clock=clock)
    assert run(loop, clock, [0.0, 0.09, 0.05]) == [5.0, 5.1, 5.2, 5.3]
    assert loop.statistics.late == 0
    assert loop.statistics.jitter.max_ms == pytest.approx(0, abs=1e-3)


def test_a_tick_that_is_a_little_late_delays_no_other():
    clock = FakeClock()
    loop = ControlLoop(10.0, clock=clock)
    assert run(loop, clock, [0.0, 0.13, 0.02]) == [0.0, 0.1, 0.23, 0.3]
    assert loop.statistics.late == 1
    assert loop.statistics.jitter.max_ms == pytest.approx(30)


def test_missed_ticks_are_left_out_and_not_caught_up():
    clock = FakeClock()
    loop = ControlLoop(10.0, clock=clock)
    assert run(loop, clock, [0.0, 0.55, 0.0, 0.0]) == [0.0, 0.1, 0.65, 0.75, 0.85]
    assert loop.statistics.late == 1


def test_statistics_are_those_worked_out_by_hand():
    clock = FakeClock()
    loop = ControlLoop(10.0, clock=clock)
    run(loop, clock, [0.02, 0.04, 0.13, 0.02])
    found = loop.statistics
    assert found.ticks == 5
    assert found.duration_s == pytest.approx(0.4)
    assert found.rate_hz == pytest.approx(10.0)
    # periods 100, 100, 130, 70; works 20, 40, 130, 20
    assert found.period == Spread(*(pytest.approx(x) for x in (100, 130, 130, 130)))
    assert found.work == Spread(*(pytest.approx(x) for x in (20, 130, 130, 130)))
    assert found.to_dict()["late"] == 1
    assert "10.00 Hz of 10 Hz, 1 late" in str(found)


def test_a_pause_is_no_period():
    clock = FakeClock()
    loop = ControlLoop(10.0, clock=clock)
    run(loop, clock, [0.02] * 4)
    clock.advance_s(3.0)
    loop.restart()
    run(loop, clock, [0.02] * 4)
    found = loop.statistics
    assert (found.ticks, found.late) == (10, 0)
    assert found.rate_hz == pytest.approx(10.0)
    assert found.period.max_ms == pytest.approx(100)
    assert found.duration_s == pytest.approx(0.4 + 3.0 + 0.4)


@pytest.mark.parametrize(("rate_hz", "duration_s"), [(30.0, 2.0), (10.0, 0.5)])
def test_a_duration_holds_its_ticks(rate_hz, duration_s):
    clock = FakeClock(3.0)
    loop = ControlLoop(rate_hz, duration_s=duration_s, clock=clock)
    loop.wait()
    steps = 0
    while not loop.should_end:
        clock.advance_s(0.001)
        loop.wait()
        steps += 1
    assert steps == rate_hz * duration_s
    assert loop.ended_by == "duration"


def test_sigint_ends_after_the_tick_and_gives_the_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with ControlLoop(10.0, clock=FakeClock()) as loop:
        os.kill(os.getpid(), signal.SIGINT)
        assert loop.should_end
        assert loop.ended_by == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_too_and_a_second_one_does_no_more():
    with ControlLoop(10.0, clock=FakeClock()) as loop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert loop.ended_by == "SIGTERM"


def test_a_loop_in_another_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with ControlLoop(10.0, clock=FakeClock()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("options", [{"rate_hz": 0.0}, {"rate_hz": 1, "duration_s": 0}])
def test_a_rate_or_duration_that_is_not_positive_is_refused(options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        ControlLoop(**options)


def test_the_real_clock_keeps_a_rate():
    loop = ControlLoop(200.0, duration_s=0.2)
    loop.wait()
    steps = 0
    while not loop.should_end:
        loop.wait()
        steps += 1
    # Fewer only where the machine was busy; never more.
    assert 1 <= steps <= 41
    assert loop.statistics.rate_hz <= 205
