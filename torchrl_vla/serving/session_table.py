"""Sessions of a server: who is in, and who is let in."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torchrl_vla.errors import SessionRefusedError
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.serving.message_fields import Failure
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.server_manifest import ServerManifest
from torchrl_vla.serving.server_options import RequestRate, ServerOptions
from torchrl_vla.serving.serving_metrics import ServingMetrics
from torchrl_vla.serving.session_rules import check_robot_of_client

_audit_log = logging.getLogger("torchrl_vla.serving.audit")
_MOST_TEXTS, _LONGEST_TEXT = 1000, 4096


@dataclass(eq=False)
class Session:
    """Hold what a server knows of one client.

    Args:
        number: unique in the server.
        protocol: that it speaks.
        rate: how often it may ask.
        warnings: that it was told when it opened.
        texts: different instructions that it has sent.
    """

    number: int
    protocol: str
    rate: RequestRate
    warnings: list[str]
    texts: set[str] = field(default_factory=set)

    def refusal(self, leaves: Leaves, now: float) -> Failure | None:
        """Return why a request is refused; None = it is not.

        Args:
            leaves: of the request.
            now: instant on the server's own clock, seconds.
        """
        if not self.rate.allows(now):
            return Failure(
                "rate",
                f"PolicyServer: expected at most {self.rate.per_s:g} requests per "
                "second, got more. Execute more actions of each chunk.",
            )
        for texts in leaves.texts.values():
            self.texts.update(texts)
        if len(self.texts) > _MOST_TEXTS or any(
            len(text) > _LONGEST_TEXT for text in self.texts
        ):
            return Failure(
                "policy",
                f"PolicyServer: expected at most {_MOST_TEXTS} different instructions "
                f"of at most {_LONGEST_TEXT} characters, got more. Open a new session.",
            )
        return None


class SessionTable:
    """Grant sessions by the rules of a server.

    Args:
        manifest: of the policy that is served.
        options: give the capacity and the rate.
        metrics: counts sessions.
        clock: returns the present instant, seconds.

    Examples:
        >>> manifest = ServerManifest("p", 4, 2, (), (), mode="exclusive")
        >>> table = SessionTable(manifest, ServerOptions(), ServingMetrics(), lambda: 0)
        >>> table.open("native", None).number
        1
        >>> table.open("native", None)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SessionRefusedError: PolicyServer: expected a free place, \
got 1 of 1 taken: the policy is exclusive. Try again later, or at another server.
    """

    def __init__(
        self,
        manifest: ServerManifest,
        options: ServerOptions,
        metrics: ServingMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.manifest = manifest
        self.metrics = metrics
        self.places = 1 if manifest.mode == "exclusive" else options.max_sessions
        self.is_draining = False
        self._options = options
        self._clock = clock
        self._numbers = itertools.count(1)
        self._sessions: dict[int, Session] = {}

    def open(self, protocol: str, robot: RobotDatasetMetadata | None) -> Session:
        """Grant a session.

        Args:
            protocol: that the client speaks.
            robot: that it drives; None = undeclared.

        Raises:
            SessionRefusedError: names the rule, and the load where that is it.
        """
        try:
            self._check_place()
            warnings = check_robot_of_client(self.manifest, robot)
        except SessionRefusedError as error:
            self.metrics.add("sessions_refused")
            audit("refused", protocol=protocol, reason=error.reason)
            raise
        number, now = next(self._numbers), self._clock()
        rate = RequestRate(self._options.max_requests_per_s, now)
        session = Session(number, protocol, rate, warnings)
        self._sessions[session.number] = session
        self.metrics.add("sessions_opened")
        audit("opened", protocol=protocol, session=session.number)
        return session

    def close(self, session: Session) -> None:
        """Free the place of a session."""
        del self._sessions[session.number]
        self.metrics.add("sessions_closed")
        audit("closed", session=session.number)

    def _check_place(self) -> None:
        taken = len(self._sessions)
        if self.is_draining:
            raise SessionRefusedError(
                "PolicyServer: expected a server in service, got one that shuts down. "
                "Try again later, or at another server.",
                "draining",
            )
        if taken >= self.places:
            why = ": the policy is exclusive" if self.manifest.mode != "shared" else ""
            raise SessionRefusedError(
                f"PolicyServer: expected a free place, got {taken} of {self.places} "
                f"taken{why}. Try again later, or at another server.",
                "capacity",
            )

    def __len__(self) -> int:
        return len(self._sessions)


def audit(event: str, **facts: object) -> None:
    """Write one line of JSON to the logger ``torchrl_vla.serving.audit``.

    Args:
        event: what happened.
        facts: about it; no observation, no action and no token.
    """
    if _audit_log.isEnabledFor(logging.INFO):
        _audit_log.info("%s", json.dumps({"event": event, **facts}))
