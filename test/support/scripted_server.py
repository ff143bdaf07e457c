"""A connection whose replies a test writes, on a clock that it sets."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from torchrl_vla.serving import (
    ClientConnection,
    Clock,
    ConnectionLostError,
    Leaves,
    Reply,
    ServerManifest,
)
from torchrl_vla.serving.message_fields import Failure

H, A = 3, 1
MANIFEST = ServerManifest(
    "scripted",
    H,
    A,
    in_keys=(("observation", "state"),),
    out_keys=(("action_chunk",),),
)


@dataclass
class HandClock(Clock):
    """A clock that stands still between what happens."""

    instant: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.instant

    def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.instant += duration_s


@dataclass
class After:
    """Something that arrives a duration after the client begins to wait for it.

    ``what`` is a value for the chunk of the present request, a reply, a failure's
    reason, or an error. ``sequence`` is relative to the present request.
    """

    delay_s: float
    what: object
    sequence: int = 0


class ScriptedConnection(ClientConnection):
    """Reply what the script says, each entry once."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.script: deque[After] = deque()
        self.openings: deque[object] = deque()
        self.sent: list[int] = []
        self.opened = 0

    def open(self, robot, timeout_s):
        self.opened += 1
        outcome = self.openings.popleft() if self.openings else MANIFEST
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def send(self, sequence, leaves):
        self.sent.append(sequence)

    def receive(self, timeout_s):
        if not self.script or self.script[0].delay_s > timeout_s:
            if self.script:
                self.script[0].delay_s -= timeout_s
            self.clock.instant += timeout_s
            raise TimeoutError
        entry = self.script.popleft()
        self.clock.instant += entry.delay_s
        sequence = self.sent[-1] + entry.sequence
        match entry.what:
            case Exception() as error:
                raise error
            case str(reason):
                return Reply(sequence, failure=Failure(reason, f"{reason}."))
            case value:
                chunk = torch.full((1, H, A), float(value))
                return Reply(sequence, Leaves((1,), {("action_chunk",): chunk}))

    def close(self):
        return None


LOST = ConnectionLostError("the cable is out.")
