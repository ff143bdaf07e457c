"""Episodes that ended in an error, and the queue of those that are still to run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EpisodeFailure:
    """Record an episode that ended in an error instead of an outcome.

    Args:
        index: of its seed among those that were asked for.
        seed: of the episode.
        error: what was raised.
    """

    index: int
    seed: int
    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


class EpisodeQueue:
    """Hand out episodes, and find out which of them an error belongs to.

    An episode is a function of its seed, so those that an error interrupts begin
    again. An error that names its environments belongs to the episodes there. Of any
    other, all episodes that were running are suspected, and run again one by one.

    Args:
        count: how many episodes there are, numbered from 0.

    Examples:
        >>> queue = EpisodeQueue(3)
        >>> queue.begin(2)
        [0, 1]
        >>> queue.interrupt([0, 1], culprits=[1])
        [1]
        >>> queue.begin(2)
        [0, 2]
    """

    def __init__(self, count: int) -> None:
        self._waiting = deque(range(count))
        self._suspects: deque[int] = deque()
        self._is_alone = False

    def __bool__(self) -> bool:
        return bool(self._waiting or self._suspects)

    def begin(self, count: int) -> list[int]:
        """Return up to ``count`` episodes that begin together; a suspect does alone."""
        self._is_alone = bool(self._suspects)
        return [self._suspects.popleft()] if self._is_alone else self.take(count)

    def take(self, count: int) -> list[int]:
        """Return up to ``count`` episodes that may begin beside the running ones."""
        if self._is_alone:
            return []
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def interrupt(self, running: Sequence[int], culprits: Sequence[int]) -> list[int]:
        """Return the episodes that failed; the other running ones begin again."""
        if len(running) == 1:
            return list(running)
        if culprits:
            self._waiting.extendleft(sorted(set(running) - set(culprits), reverse=True))
            return list(culprits)
        self._suspects.extend(running)
        return []
