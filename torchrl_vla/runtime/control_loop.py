"""Control loop: ticks at a rate, until it is told to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from typing_extensions import Self

from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.loop_statistics import LoopStatistics

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ControlLoop:
    """Wait for the ticks of a control rate, measure them, and say when to end.

    Ticks lie on a grid of ``1 / rate_hz``, so that a late one delays no other. Where
    work takes longer than a period, the missed ticks are left out and the grid begins
    anew: nothing is caught up in a burst.

    As a context manager it ends the loop at SIGINT and SIGTERM: the tick that runs is
    finished, so that the robot is left with a whole, legal action. A second Ctrl-C
    interrupts at once.

    Args:
        rate_hz: ticks per second.

    Keyword Args:
        duration_s: the loop ends so long after its first tick; None = when it is told.
        clock: the robot's; None = the monotonic one.

    Raises:
        ValueError: the rate or the duration is not positive.
        KeyboardInterrupt: a second SIGINT.

    Examples:
        >>> from torchrl_vla.testing import FakeClock
        >>> clock = FakeClock()
        >>> with ControlLoop(10.0, duration_s=0.5, clock=clock) as loop:
        ...     loop.wait()
        ...     while not loop.should_end:
        ...         clock.advance_s(0.03)  # work
        ...         loop.wait()
        >>> loop.statistics.ticks, loop.ended_by
        (6, 'duration')
        >>> loop.statistics.work.max_ms
        30.0
    """

    def __init__(
        self,
        rate_hz: float,
        *,
        duration_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("rate_hz", rate_hz), ("duration_s", duration_s)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(
                    f"ControlLoop: expected a positive number at argument {name!r}, "
                    f"got {value!r}."
                )
        self.rate_hz, self.duration_s = rate_hz, duration_s
        self.clock: Clock = MonotonicClock() if clock is None else clock
        self.statistics = LoopStatistics(rate_hz)
        self._ended = threading.Event()
        self._ended_by: str | None = None
        self._next_s: float | None = None
        self._handlers: dict[int, object] = {}

    @property
    def should_end(self) -> bool:
        """True = the loop is over: its duration is, or :meth:`end` was called."""
        first_s = self.statistics.first_s
        if self.duration_s is not None and first_s is not None:
            # The last tick begins in the duration, whatever its rounding.
            left_s = first_s + self.duration_s - self.statistics.last_s
            if left_s < 1e-3 / self.rate_hz:
                self.end("duration")
        return self._ended.is_set()

    @property
    def ended_by(self) -> str | None:
        """Why it ended: ``"duration"``, a signal's name or :meth:`end`'s reason."""
        return self._ended_by

    def end(self, reason: str) -> None:
        """End the loop after the present tick; from any thread."""
        if not self._ended.is_set():
            self._ended_by = reason
            self._ended.set()

    def wait(self) -> None:
        """Wait for the next tick; the first one is now."""
        now_s, period_s = self.clock.now_s(), 1 / self.rate_hz
        begins = self._next_s is None
        if self._next_s is None:
            self._next_s = now_s
        scheduled_s, work_s = self._next_s, now_s - self.statistics.last_s
        if now_s > scheduled_s:
            self.statistics.late += 1
            if now_s >= scheduled_s + period_s:
                self._next_s = now_s
        else:
            self.clock.sleep_until_s(scheduled_s)
        self.statistics.add(self.clock.now_s(), scheduled_s, work_s, begins)
        self._next_s += period_s

    def restart(self) -> None:
        """Begin a new grid at the next :meth:`wait`, as after a pause."""
        self._next_s = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back to who handled them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ended.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.end(signal.Signals(number).name)
