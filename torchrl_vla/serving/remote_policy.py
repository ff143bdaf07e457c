"""Policy without weights, whose answers come from a server."""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import Counter
from dataclasses import dataclass, field

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.errors import (
    ServingError,
    SessionRefusedError,
    SettingsError,
    WireError,
)
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    NOISE_SEED_KEY,
    ROBOT_SPACE,
    InstructionTable,
    RobotDatasetMetadata,
    check_actions,
)
from torchrl_vla.serving.client_connection import (
    ClientConnection,
    ConnectionLostError,
    Link,
    NativeConnection,
    Reply,
)
from torchrl_vla.serving.connection_state import (
    Clock,
    ConnectionMonitor,
    ConnectionState,
    ConnectionTimes,
)
from torchrl_vla.serving.fallbacks import Fallback
from torchrl_vla.serving.observation_leaves import Leaves

#: Refusals after which another try may be granted.
_PASSING = ("capacity", "draining")
#: Failures of a request after which the next one may be answered.
_TRANSIENT = ("rate", "superseded", "draining", "internal")


@dataclass(frozen=True)
class ClientOptions:
    """Set how long a client waits, and what it does then.

    Args:
        request_timeout_s: longest duration of a call, seconds.
        max_age_s: an answer that took longer is not acted on, seconds; None = any may
            be, as in a simulation that waits for it.
        fallback: what acts in place of an answer; None = the call raises.
        times: of the connection's states.

    Raises:
        SettingsError: a duration is not positive.
    """

    request_timeout_s: float = 5.0
    max_age_s: float | None = 3.0
    fallback: Fallback | None = None
    times: ConnectionTimes = field(default_factory=ConnectionTimes)

    def __post_init__(self) -> None:
        if self.request_timeout_s <= 0 or (self.max_age_s or 1) <= 0:
            raise SettingsError(
                "ClientOptions: expected durations > 0, got request_timeout_s="
                f"{self.request_timeout_s} and max_age_s={self.max_age_s}. Pass "
                "max_age_s=None for no bound."
            )


class RemotePolicy(TensorDictModuleBase):
    """Ask a :class:`PolicyServer` for chunks; any executor takes it as its policy.

    Keys and sizes are the server's. One request is under way at a time. An answer is
    acted on only if it answers the present request and arrives in time: late and
    repeated ones are dropped by their number. After a lost connection it reconnects;
    a server that serves something else then is given up. Until an answer comes,
    ``options.fallback`` acts, or the call raises. It needs neither the policy's weights
    nor the packages that it is made of.

    Note:
        A call waits for the network. Where a control loop must not wait, use it in
        :class:`~torchrl_vla.execution.AsyncExecutor`. A fallback is executed like any
        chunk, so the server is asked again after ``replan_interval`` steps.

    **Reads** what the manifest names, and ``noise_seed`` int64 ``[*B]`` where it is.
    **Writes** what the manifest names: ``action_chunk`` float ``[*B, H, A]`` in robot
    space; a fallback writes that alone.

    Args:
        address: ``"ws://host:port"``; or a :class:`Link` with token, certificate and
            JPEG; or a connection, such as :class:`OpenPIConnection`.

    Keyword Args:
        robot: that it drives; None = undeclared, nothing is compared.
        instructions: turns instruction ids into the texts that are sent; None = ids
            are sent, which the server's policy has to know.
        options: how long to wait, and what to do then; None = ``ClientOptions()``.
        clock: of this machine; None = its monotonic one.

    Attributes:
        manifest: of the server.
        counts: of ``answers``, ``late``, ``fallbacks``, ``reconnections`` and
            ``timeouts``.

    Raises:
        MissingExtraError: the extra ``serving`` is not installed.
        SessionRefusedError: the server does not take this robot; names the rule.
        ServingError: there is no server; no answer came and there is no fallback; the
            policy refused the observation.
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        address: str | Link | ClientConnection,
        *,
        robot: RobotDatasetMetadata | None = None,
        instructions: InstructionTable | None = None,
        options: ClientOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        options, clock = options or ClientOptions(), clock or Clock()
        match address:
            case ClientConnection():
                self.connection: ClientConnection = address
            case Link():
                self.connection = NativeConnection(address)
            case _:
                self.connection = NativeConnection(Link(address))
        self.robot = robot
        self.instructions = instructions
        self.options = options
        self.counts: Counter[str] = Counter()
        self.monitor = ConnectionMonitor(options.times, clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._sequences = itertools.count(1)
        self._is_open = False
        self._unanswered: int | None = None
        self._last: Tensor | None = None
        self._problem = "it has not been asked yet"
        self._open_first()
        weakref.finalize(self, self.connection.close)
        if options.fallback is not None:
            options.fallback.check(self.manifest)

    def _open_first(self) -> None:
        end = self._clock.now() + self.options.times.open_s
        while True:
            self.monitor.tried()
            try:
                self.manifest = self.connection.open(self.robot, self._left(end))
                break
            except (ConnectionLostError, TimeoutError) as error:
                wait = self.monitor.retry_in_s
                if self._clock.now() + wait >= end:
                    raise ServingError(
                        "RemotePolicy: expected a session within "
                        f"{self.options.times.open_s:g} s, got {error or 'no reply'}"
                    ) from error
                self._clock.sleep(wait)
        self._is_open = True
        self.monitor.opened()
        for text in self.connection.warnings:
            warnings.warn(f"RemotePolicy: {text}", stacklevel=3)
        manifest = self.manifest
        self.chunk_size, self.action_dim = manifest.chunk_size, manifest.action_dim
        self.in_keys = [_key(path) for path in manifest.in_keys]
        self.out_keys = [_key(path) for path in manifest.out_keys]
        self.optional_in_keys = [_key(path) for path in manifest.optional_in_keys]
        self.n_action_steps = manifest.replan_interval
        self.training_metadata = manifest.metadata
        self.policy_space = ROBOT_SPACE

    @property
    def state(self) -> ConnectionState:
        """How the client stands with its server."""
        return self.monitor.state

    def close(self) -> None:
        """End the session."""
        self._is_open = False
        self.monitor.given_up()
        self.connection.close()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the server's answer, or the fallback's chunk."""
        keys = [*self.in_keys, *self.optional_in_keys, NOISE_SEED_KEY]
        leaves = Leaves.from_tensordict(tensordict, keys, self.instructions)
        with self._lock:
            answer = self._ask(leaves)
            if answer is None:
                chunk = self._fall_back(tensordict)
                return tensordict.set(ACTION_CHUNK_KEY, chunk)
            self._last = answer.tensors["action_chunk",]
        for path, value in answer.tensors.items():
            tensordict.set(_key(path), _on(value, tensordict))
        return tensordict

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk ``[*B, H, A]``."""
        return self(tensordict.copy()).get(ACTION_CHUNK_KEY)

    def _ask(self, leaves: Leaves) -> Leaves | None:
        """Return the answer to a request; None = there is none that may be acted on."""
        end = self._clock.now() + self.options.request_timeout_s
        self.monitor.asked()
        while self.state is not ConnectionState.DEAD:
            try:
                if self._is_open or self._reopen(end):
                    if self._unanswered is not None:
                        self._receive(self._unanswered, end)
                        self.counts["late"] += 1
                    return self._accept(self._exchange(leaves, end), leaves)
            except TimeoutError:
                self.counts["timeouts"] += 1
                self._problem = f"no answer in {self.options.request_timeout_s:g} s"
                return None
            except ConnectionLostError as error:
                self._lose(str(error))
            except (WireError, SessionRefusedError) as error:
                self._give_up(str(error))
                break
            wait = self.monitor.retry_in_s
            can_wait = self.options.fallback is None or wait == 0
            if not can_wait or self._clock.now() + wait >= end:
                return None
            if wait > 0:
                self._clock.sleep(wait)
        raise ServingError(
            f"RemotePolicy: expected a server, got one that is given up: "
            f"{self._problem} Make a new RemotePolicy. No action was sent."
        )

    def _exchange(self, leaves: Leaves, end: float) -> tuple[Reply, float]:
        """Send a request, and return its reply and how long that took."""
        begin, sequence = self._clock.now(), next(self._sequences)
        self._unanswered = sequence
        self.connection.send(sequence, leaves)
        return self._receive(sequence, end), self._clock.now() - begin

    def _receive(self, sequence: int, end: float) -> Reply:
        """Return the reply of a number; drop those of others."""
        while True:
            reply = self.connection.receive(self._left(end))
            if reply.sequence == sequence:
                self._unanswered = None
                return reply
            self.counts["late"] += 1

    def _accept(self, exchanged: tuple[Reply, float], leaves: Leaves) -> Leaves | None:
        reply, took_s = exchanged
        if reply.failure is not None:
            self._problem = reply.failure.message
            if reply.failure.reason in _TRANSIENT:
                return None
            raise ServingError(f"{self._problem} No action was sent.")
        longest = self.options.max_age_s
        if longest is not None and took_s > longest:
            self.counts["late"] += 1
            self._problem = f"an answer after {took_s:.3g} s, of at most {longest:g} s"
            return None
        chunk = (
            None
            if reply.leaves is None
            else reply.leaves.tensors.get(("action_chunk",))
        )
        if reply.leaves is None or chunk is None:
            raise ServingError(
                "RemotePolicy: expected a chunk in the answer, got none. No action was "
                "sent."
            )
        sizes = (self.chunk_size, self.action_dim)
        batch, caller = leaves.batch_size, "RemotePolicy"
        check_actions(caller, ACTION_CHUNK_KEY, chunk, batch, sizes, error=ServingError)
        self.monitor.answered()
        self.counts["answers"] += 1
        return reply.leaves

    def _reopen(self, end: float) -> bool:
        """Return whether there is a session again; give a changed server up."""
        if self.monitor.retry_in_s > 0:
            return False
        self.monitor.tried()
        try:
            found = self.connection.open(self.robot, self._left(end))
        except SessionRefusedError as error:
            if error.reason not in _PASSING:
                raise
            self._problem = str(error)
            return False
        changed = self.manifest.differences(found)
        if changed:
            self.connection.close()
            raise SessionRefusedError(
                f"RemotePolicy: expected the policy {self.manifest.policy!r} again, "
                f"got one with other {changed}.",
                "manifest",
            )
        self._is_open, self._unanswered = True, None
        self.monitor.opened()
        self.counts["reconnections"] += 1
        return True

    def _lose(self, why: str) -> None:
        self._problem = why
        self._is_open, self._unanswered = False, None
        self.monitor.lost()

    def _give_up(self, why: str) -> None:
        self._lose(why)
        self.monitor.given_up()
        self.connection.close()

    def _fall_back(self, tensordict: TensorDictBase) -> Tensor:
        if self.options.fallback is None:
            raise ServingError(
                f"RemotePolicy: expected an answer, got {self._problem.rstrip('.')}. "
                "Set a fallback to act without one. No action was sent."
            )
        self.counts["fallbacks"] += 1
        chunk = self.options.fallback.chunk(self.manifest, tensordict, self._last)
        return _on(chunk, tensordict)

    def _left(self, end: float) -> float:
        return max(0.0, end - self._clock.now())

    def extra_repr(self) -> str:
        """Show the policy and the state of the connection."""
        return f"policy={self.manifest.policy!r}, state={self.state.name}"


def _key(path: tuple[str, ...]) -> NestedKey:
    return path[0] if len(path) == 1 else path


def _on(value: Tensor, like: TensorDictBase) -> Tensor:
    return value if like.device is None else value.to(like.device)
