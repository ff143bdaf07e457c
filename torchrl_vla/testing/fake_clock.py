"""Clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """Tell a time that passes only when somebody sleeps or works.

    It stands where a :class:`~torchrl_vla.runtime.Clock` does: a minute of control
    takes no time, and is the same every time.

    Args:
        start_s: the first instant in seconds.

    Examples:
        >>> clock = FakeClock(10.0)
        >>> clock.sleep_until_s(12.0)
        >>> clock.advance_s(0.5)
        >>> clock.now_s()
        12.5
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the present instant in seconds."""
        return self._now_s

    def sleep_until_s(self, instant_s: float) -> None:
        """Go to an instant, or stay where it is past."""
        self._now_s = max(self._now_s, instant_s)

    def advance_s(self, seconds: float) -> None:
        """Let time pass, as work does.

        Raises:
            ValueError: time would go back.
        """
        if seconds < 0:
            raise ValueError(f"FakeClock: expected seconds >= 0, got {seconds}.")
        self._now_s += seconds
