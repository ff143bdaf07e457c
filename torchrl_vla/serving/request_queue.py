"""Requests that wait for the policy: one per session, the newest, in turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeAlias

from torchrl_vla.serving.message_fields import Failure
from torchrl_vla.serving.observation_leaves import Leaves


@dataclass
class Outcome:
    """What became of a request: the answer's leaves, or a failure.

    Args:
        leaves: of the answer; None = it failed.
        failure: why; None = it did not.
        waited_s: duration from its arrival to the policy's call, seconds.
        inference_s: duration of the policy's call, seconds.
        rows: of the policy's call, other sessions' included.
    """

    leaves: Leaves | None = None
    failure: Failure | None = None
    waited_s: float = 0.0
    inference_s: float = 0.0
    rows: int = 0


Done: TypeAlias = Callable[[Outcome], None]

_SUPERSEDED = Failure(
    "superseded",
    "PolicyServer: expected one request at a time, got a newer one of the same client, "
    "which is answered instead. Wait for each answer.",
)


@dataclass
class Waiting:
    """A request that waits.

    Args:
        leaves: the observation.
        done: is called once with what became of it, in any thread.
        arrived: instant of its arrival on the server's own clock, seconds.
    """

    leaves: Leaves
    done: Done
    arrived: float = 0.0


class RequestQueue:
    """Keep the newest request of each session, and serve the sessions in turn.

    A session has one place. A newer request takes over the place of one that still
    waits, which fails as superseded. So a client that asks more often than others is
    not served more often than they are. May be used from several threads.

    Args:
        max_rows: rows of one call of the policy; a single request may have more.

    Examples:
        >>> import torch
        >>> queue, seen = RequestQueue(max_rows=4), []
        >>> for session, value in (("greedy", 1.0), ("slow", 2.0), ("greedy", 3.0)):
        ...     leaves = Leaves((1,), {("state",): torch.tensor([[value]])})
        ...     queue.put(session, Waiting(leaves, seen.append))
        >>> [float(w.leaves.tensors["state",]) for w in queue.take()]
        [3.0, 2.0]
        >>> seen[0].failure.reason
        'superseded'
    """

    def __init__(self, max_rows: int = 1) -> None:
        self.max_rows = max_rows
        self._places: OrderedDict[Hashable, Waiting] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, session: Hashable, request: Waiting) -> None:
        """Let a request wait."""
        with self._changed:
            older = self._places.get(session)
            self._places[session] = request  # in the older one's place
            self._changed.notify()
        if older is not None:
            older.done(Outcome(failure=_SUPERSEDED))

    def discard(self, session: Hashable) -> None:
        """Forget the request of a session whose client is gone."""
        with self._changed:
            self._places.pop(session, None)

    def take(self) -> list[Waiting]:
        """Return the next batch: requests of one signature; empty = none waits."""
        with self._changed:
            return self._next_batch()

    def wait(self) -> list[Waiting] | None:
        """Return the next batch once there is one; None = the queue is closed."""
        with self._changed:
            while not self._places and not self._is_closed:
                self._changed.wait()
            return self._next_batch() if self._places else None

    def close(self) -> None:
        """Let :meth:`wait` return None once every request has been taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        rows = 0
        for session, request in list(self._places.items()):
            fits = not batch or (
                rows + request.leaves.rows <= self.max_rows
                and request.leaves.signature == batch[0].leaves.signature
            )
            if fits:
                batch.append(self._places.pop(session))
                rows += request.leaves.rows
            if rows >= self.max_rows:
                break
        return batch

    def __len__(self) -> int:
        with self._changed:
            return len(self._places)
