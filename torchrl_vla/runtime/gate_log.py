"""Log of a safety gate's interventions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

#: Interventions that are kept one by one; all are counted.
_KEPT = 10_000


@dataclass(frozen=True)
class GateIntervention:
    """One action that did not reach the robot as it was.

    Args:
        step: number of the action in the session, from 0.
        at_s: instant on the gate's clock.
        reason: what was wrong, one name per kind: ``"limits"``, ``"not finite"``,
            ``"step"``, ``"stale observation"``, ``"stale action"``, ``"overtaken"``,
            ``"foreign session"``, ``"late policy"``, ``"watchdog"`` or ``"stopped"``.
        reaction: ``"refused"``, ``"clipped"``, ``"held"`` or ``"stopped"``.
        before: what was to be sent; None = nothing.
        after: what was sent; None = nothing.
    """

    step: int
    at_s: float
    reason: str
    reaction: str
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None


class GateLog:
    """Keep the last 10,000 interventions, and count all.

    Examples:
        >>> log = GateLog()
        >>> log.add(GateIntervention(0, 0.1, "limits", "clipped", (2.0,), (1.0,)))
        >>> len(log), log.counts["limits", "clipped"], log
        (1, 1, GateLog(limits clipped: 1))
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._kept: deque[GateIntervention] = deque(maxlen=_KEPT)

    def add(self, intervention: GateIntervention) -> None:
        """Append one."""
        self.counts[intervention.reason, intervention.reaction] += 1
        self._kept.append(intervention)

    def to_dicts(self) -> list[dict[str, object]]:
        """Return the kept ones as JSON-native values."""
        return [asdict(intervention) for intervention in self._kept]

    def __iter__(self) -> Iterator[GateIntervention]:
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return self.counts.total()

    def __repr__(self) -> str:
        found = ", ".join(
            f"{reason} {reaction}: {count}"
            for (reason, reaction), count in sorted(self.counts.items())
        )
        return f"GateLog({found or 'no interventions'})"
