"""Parts that the protocols of a server share: policy, queue, sessions, answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from torchrl_vla.serving.message_fields import Failure
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.request_queue import Outcome, RequestQueue, Waiting
from torchrl_vla.serving.served_policy import ServedPolicy
from torchrl_vla.serving.server_options import ServerOptions
from torchrl_vla.serving.serving_metrics import ServingMetrics
from torchrl_vla.serving.session_table import Session, SessionTable, audit

_DRAINING = Failure(
    "draining",
    "PolicyServer: expected no request of a server that shuts down. Reconnect.",
)


class ServerCore:
    """Answer the requests of all sessions with one policy, in a thread of its own.

    Args:
        policy: that answers.
        options: of the server.
        clock: returns the present instant of this machine's clock, seconds.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        options: ServerOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.options = options
        self.clock = clock
        self.metrics = ServingMetrics()
        self.queue = RequestQueue(options.max_rows)
        self.sessions = SessionTable(policy.manifest, options, self.metrics, clock)
        self._in_flight: set[asyncio.Future[Outcome]] = set()
        self._thread = threading.Thread(
            target=self._answer_batches, name="policy", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, and end the thread."""
        self.queue.close()
        self._thread.join()

    async def ask(self, session: Session, leaves: Leaves, sequence: int) -> Outcome:
        """Return what became of a request."""
        self.metrics.add("requests")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._in_flight.add(future)
        try:
            refusal = _DRAINING if self.sessions.is_draining else None
            refusal = refusal or session.refusal(leaves, self.clock())
            if refusal is not None:
                outcome = Outcome(failure=refusal)
            else:
                self.policy.check(leaves)

                def done(outcome: Outcome) -> None:
                    loop.call_soon_threadsafe(_settle, future, outcome)

                request = Waiting(leaves, done, self.clock())
                self.queue.put(session.number, request)
                outcome = await future
        finally:
            self._in_flight.discard(future)
        self._record(session, sequence, outcome)
        return outcome

    async def drain(self) -> None:
        """Refuse what is new, and wait for the answers that are due."""
        self.sessions.is_draining = True
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=self.options.drain_s)
        await asyncio.sleep(0)  # the handlers send what they were waiting for

    def gauges(self) -> dict[str, float]:
        """Return the present load."""
        taken, places = len(self.sessions), self.sessions.places
        return {
            "active_sessions": taken,
            "load": taken / places,
            "waiting_requests": len(self.queue),
        }

    def _answer_batches(self) -> None:
        while (batch := self.queue.wait()) is not None:
            begin = self.clock()
            answers = self.policy.answer([request.leaves for request in batch])
            spent = self.clock() - begin
            rows = sum(request.leaves.rows for request in batch)
            self.metrics.add("policy_calls")
            self.metrics.add("policy_rows", rows)
            self.metrics.add("policy_seconds", spent)
            for request, answer in zip(batch, answers, strict=True):
                waited = begin - request.arrived
                self.metrics.add("waiting_seconds", waited)
                match answer:
                    case Leaves():
                        outcome = Outcome(answer, None, waited, spent, rows)
                    case Failure():
                        outcome = Outcome(None, answer, waited, spent, rows)
                request.done(outcome)

    def _record(self, session: Session, sequence: int, outcome: Outcome) -> None:
        reason = "answered" if outcome.failure is None else outcome.failure.reason
        counter = {
            "answered": "answers",
            "superseded": "superseded",
            "rate": "rate_limited",
        }
        self.metrics.add(counter.get(reason, "failures"))
        audit(
            "request",
            session=session.number,
            sequence=sequence,
            outcome=reason,
            waited_ms=round(1e3 * outcome.waited_s, 3),
            inference_ms=round(1e3 * outcome.inference_s, 3),
            rows=outcome.rows,
        )


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():  # its client may be gone
        future.set_result(outcome)
