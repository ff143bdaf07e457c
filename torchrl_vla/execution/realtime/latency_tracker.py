"""Measured delay of a policy, in control steps."""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction

from torchrl_vla.schema import check_positive_int


class LatencyTracker:
    """Predict how many control steps the policy's next answer takes.

    The prediction is the largest delay of the last calls. A delay is counted in steps
    of the executor, from the request to the first step that found the answer, so that a
    loop that stalls or runs ahead is measured as it is; no clock is read.

    Args:
        initial_steps: the prediction before anything was measured.
        window: calls that count.

    Raises:
        ValueError: a number is negative, or there is no window.

    Examples:
        >>> tracker = LatencyTracker(initial_steps=2, window=3)
        >>> tracker.delay_steps
        2
        >>> for steps in (1, 5, 3, 2, 2):
        ...     tracker.record(steps)
        >>> tracker.delay_steps  # of 3, 2, 2
        3

    Source: Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow
    Policies" (2025), algorithm 1 (the buffer of delays).
    """

    def __init__(self, initial_steps: int = 0, *, window: int = 10) -> None:
        check_positive_int("LatencyTracker", "window", window)
        if initial_steps < 0:
            raise ValueError(
                f"LatencyTracker: expected initial_steps >= 0, got {initial_steps}."
            )
        self.initial_steps = initial_steps
        self._steps: deque[int] = deque(maxlen=window)

    @classmethod
    def from_seconds(
        cls, latency_s: float, rate_hz: float, *, window: int = 10
    ) -> LatencyTracker:
        """Begin with the steps that a latency takes at a control rate, rounded up.

        Examples:
            >>> LatencyTracker.from_seconds(0.15, rate_hz=30).delay_steps
            5
        """
        if not (math.isfinite(latency_s) and latency_s >= 0 and rate_hz > 0):
            raise ValueError(
                "LatencyTracker: expected latency_s >= 0 and rate_hz > 0, got "
                f"{latency_s} and {rate_hz}."
            )
        # As decimals: 0.1 s at 30 Hz is 3 steps, and 0.1 * 30 is more than 3.
        steps = Fraction(str(float(latency_s))) * Fraction(str(float(rate_hz)))
        return cls(math.ceil(steps), window=window)

    def record(self, steps: int) -> None:
        """Note the delay of one call, in steps."""
        self._steps.append(steps)

    @property
    def delay_steps(self) -> int:
        """The predicted delay of the next call, in steps."""
        return max(self._steps, default=self.initial_steps)

    def __repr__(self) -> str:
        return f"LatencyTracker(delay_steps={self.delay_steps})"
