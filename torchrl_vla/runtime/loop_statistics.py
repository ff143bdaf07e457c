"""Statistics of a control loop's timing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

#: Periods that percentiles are of: the last hour at 30 Hz.
_KEPT = 108_000


@dataclass(frozen=True)
class Spread:
    """Percentiles of durations, in ms."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Return the percentiles of durations in s (nearest rank); 0 of none.

        Examples:
            >>> Spread.of([0.001, 0.002, 0.003, 0.010])
            Spread(p50_ms=2.0, p95_ms=10.0, p99_ms=10.0, max_ms=10.0)
        """
        if not seconds:
            return cls(0.0, 0.0, 0.0, 0.0)
        ordered = sorted(seconds)
        ranks = [-(-len(ordered) * percent // 100) - 1 for percent in (50, 95, 99)]
        values = [ordered[rank] for rank in ranks] + [ordered[-1]]
        return cls(*(round(1000 * value, 6) for value in values))

    def __str__(self) -> str:
        return (
            f"{self.p50_ms:8.2f} {self.p95_ms:8.2f} {self.p99_ms:8.2f} "
            f"{self.max_ms:8.2f}"
        )


class LoopStatistics:
    """Record when the ticks of a control loop began, and how long its work took.

    - *period*: from one tick to the next;
    - *jitter*: how far a tick began from its place in the schedule;
    - *work*: what a tick did before it waited for the next one;
    - *late*: ticks whose work went past the next tick's place.

    Args:
        rate_hz: that was asked for.

    Examples:
        >>> statistics = LoopStatistics(10.0)
        >>> for begun_s in (0.0, 0.1, 0.2):
        ...     statistics.add(begun_s, scheduled_s=begun_s, work_s=0.02)
        >>> statistics.ticks, round(statistics.rate_hz, 3), statistics.work.p99_ms
        (3, 10.0, 20.0)
    """

    def __init__(self, rate_hz: float) -> None:
        self.wanted_hz = rate_hz
        self.ticks = self.late = self._periods = 0
        self._period_s = 0.0
        self.first_s: float | None = None
        self.last_s = 0.0
        self.periods_s: deque[float] = deque(maxlen=_KEPT)
        self.jitters_s: deque[float] = deque(maxlen=_KEPT)
        self.works_s: deque[float] = deque(maxlen=_KEPT)

    def add(
        self, begun_s: float, scheduled_s: float, work_s: float, begins: bool = False
    ) -> None:
        """Record a tick, and the work of the one before it.

        Args:
            begun_s: when it began.
            scheduled_s: its place in the schedule.
            work_s: of the one before it.
            begins: True = it is the first one after a pause: only counted.
        """
        if self.first_s is None:
            self.first_s = begun_s
        elif not begins:
            self._periods += 1
            self._period_s += begun_s - self.last_s
            self.periods_s.append(begun_s - self.last_s)
            self.jitters_s.append(abs(begun_s - scheduled_s))
            self.works_s.append(work_s)
        self.ticks += 1
        self.last_s = begun_s

    @property
    def duration_s(self) -> float:
        """From the first tick to the last, with the pauses."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    @property
    def rate_hz(self) -> float:
        """Ticks per second that were reached, but for pauses."""
        return self._periods / self._period_s if self._period_s > 0 else 0.0

    @property
    def period(self) -> Spread:
        """Of the last 108,000 ticks, as for the others."""
        return Spread.of(self.periods_s)

    @property
    def jitter(self) -> Spread:
        """Distances from the schedule."""
        return Spread.of(self.jitters_s)

    @property
    def work(self) -> Spread:
        """Durations of a tick's work."""
        return Spread.of(self.works_s)

    def to_dict(self) -> dict[str, object]:
        """Return the summary as JSON-native values."""
        return {
            "wanted_hz": self.wanted_hz,
            "rate_hz": self.rate_hz,
            "ticks": self.ticks,
            "late": self.late,
            "duration_s": self.duration_s,
            "period": vars(self.period),
            "jitter": vars(self.jitter),
            "work": vars(self.work),
        }

    def __str__(self) -> str:
        return (
            f"{self.ticks} ticks in {self.duration_s:.2f} s: {self.rate_hz:.2f} Hz of "
            f"{self.wanted_hz:g} Hz, {self.late} late\n"
            "ms           p50      p95      p99      max\n"
            f"period  {self.period}\njitter  {self.jitter}\nwork    {self.work}"
        )
