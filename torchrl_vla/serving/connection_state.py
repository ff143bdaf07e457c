"""States of a client's connection, and the times that lead from one to the next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from torchrl_vla.errors import SettingsError


class ConnectionState(Enum):
    """Name how a client stands with its server."""

    CONNECTING = "no session yet"
    STREAMING = "answers arrive in time"
    DEGRADED = "an answer is late"
    STALLED = "the last answer is too old to act on"
    RECONNECTING = "the connection is lost"
    DEAD = "the server is given up"


class Clock:
    """Tell durations on this machine; a test passes one of its own.

    Instants are of this machine and this process alone: none is sent anywhere.
    """

    def now(self) -> float:
        """Return the present instant, seconds; it never goes back."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Wait."""
        time.sleep(duration_s)


@dataclass(frozen=True)
class ConnectionTimes:
    """Set after what durations, in seconds, a connection changes its state.

    Args:
        open_s: longest time for the first session.
        degraded_s: without an answer, to ``DEGRADED``.
        stalled_s: without an answer, to ``STALLED``.
        first_retry_s: from a failed try to reconnect to the next; doubles each time.
        longest_retry_s: at most.
        dead_s: without a connection, to ``DEAD``.

    Raises:
        SettingsError: they are not in order.

    Examples:
        >>> ConnectionTimes(degraded_s=5.0)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SettingsError: ConnectionTimes: expected 0 < degraded_s < \
stalled_s < dead_s and 0 < first_retry_s <= longest_retry_s, got 5.0, 3.0, 60.0 and \
0.5, 10.0. Order them.
    """

    open_s: float = 10.0
    degraded_s: float = 1.0
    stalled_s: float = 3.0
    first_retry_s: float = 0.5
    longest_retry_s: float = 10.0
    dead_s: float = 60.0

    def __post_init__(self) -> None:
        waits = (self.degraded_s, self.stalled_s, self.dead_s)
        retries = (self.first_retry_s, self.longest_retry_s)
        if not 0 < waits[0] < waits[1] < waits[2] or not 0 < retries[0] <= retries[1]:
            raise SettingsError(
                "ConnectionTimes: expected 0 < degraded_s < stalled_s < dead_s and "
                "0 < first_retry_s <= longest_retry_s, got "
                f"{', '.join(map(str, waits))} and {', '.join(map(str, retries))}. "
                "Order them."
            )


class ConnectionMonitor:
    """Tell a connection's state from what happened to it.

    Args:
        times: of the changes.
        clock: of this machine.

    Examples:
        >>> class HandClock(Clock):
        ...     instant = 0.0
        ...
        ...     def now(self):
        ...         return self.instant
        >>> clock = HandClock()
        >>> monitor = ConnectionMonitor(ConnectionTimes(), clock)
        >>> monitor.opened(), monitor.asked()
        (None, None)
        >>> for clock.instant in (0.5, 1.0, 3.0):
        ...     print(monitor.state.name)
        STREAMING
        DEGRADED
        STALLED
        >>> monitor.answered()
        >>> monitor.state.name
        'STREAMING'
    """

    def __init__(self, times: ConnectionTimes, clock: Clock) -> None:
        self.times = times
        self._clock = clock
        self._offline_since: float | None = clock.now()
        self._asked_at: float | None = None
        self._retry_at = clock.now()
        self._tries = 0
        self._was_open = False
        self._is_dead = False

    @property
    def state(self) -> ConnectionState:
        """The present state; DEAD is the last one."""
        now = self._clock.now()
        if self._offline_since is not None:
            is_late = now - self._offline_since >= self.times.dead_s
            self._is_dead = self._is_dead or is_late
            if self._is_dead:
                return ConnectionState.DEAD
            if self._was_open:
                return ConnectionState.RECONNECTING
            return ConnectionState.CONNECTING
        waited = 0.0 if self._asked_at is None else now - self._asked_at
        if waited >= self.times.stalled_s:
            return ConnectionState.STALLED
        if waited >= self.times.degraded_s:
            return ConnectionState.DEGRADED
        return ConnectionState.STREAMING

    @property
    def retry_in_s(self) -> float:
        """Duration until the next try to connect is allowed, seconds."""
        return max(0.0, self._retry_at - self._clock.now())

    def tried(self) -> None:
        """Note that a try to connect begins."""
        longest = self.times.longest_retry_s
        wait = self.times.first_retry_s * 2.0 ** min(self._tries, 60)
        self._retry_at = self._clock.now() + min(longest, wait)
        self._tries += 1

    def opened(self) -> None:
        """Note that there is a session."""
        self._offline_since, self._was_open = None, True

    def asked(self) -> None:
        """Note a request; one that is not the first since the last answer is none."""
        if self._asked_at is None:
            self._asked_at = self._clock.now()

    def answered(self) -> None:
        """Note an answer that is acted on."""
        self._asked_at = None
        self._tries, self._retry_at = 0, self._clock.now()

    def lost(self) -> None:
        """Note that the connection is gone."""
        if self._offline_since is None:
            self._offline_since = self._clock.now()

    def given_up(self) -> None:
        """Note that another try would not change anything."""
        self.lost()
        self._is_dead = True
