"""Monotonic clock of a control loop."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tell the time and wait, in seconds of a clock that never goes back.

    A robot, a gate and a loop that work together share one clock. Its zero means
    nothing: only differences do, and no instant leaves the process.
    ``torchrl_vla.testing.FakeClock`` is one that tests move by hand.
    """

    def now_s(self) -> float:
        """Return the present instant in seconds."""
        ...

    def sleep_until_s(self, instant_s: float) -> None:
        """Return at an instant, or at once where it is past."""
        ...


class MonotonicClock:
    """Tell the time of ``time.monotonic``, which no change of the date moves.

    Examples:
        >>> clock = MonotonicClock()
        >>> start = clock.now_s()
        >>> clock.sleep_until_s(start + 0.001)
        >>> clock.now_s() - start >= 0.001
        True
    """

    def now_s(self) -> float:
        """Return the present instant in seconds."""
        return time.monotonic()

    def sleep_until_s(self, instant_s: float) -> None:
        """Return at an instant, or at once where it is past."""
        while (left := instant_s - time.monotonic()) > 0:
            time.sleep(left)
