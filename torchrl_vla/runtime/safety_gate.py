"""Safety gate: the only way from a program to a robot."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.execution import EmbodimentContract
from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.gate_checks import (
    ActionChecks,
    RobotStoppedError,
    StaleActionError,
    check_declared,
    check_observation,
)
from torchrl_vla.runtime.gate_log import GateIntervention, GateLog
from torchrl_vla.runtime.gate_options import GateOptions
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.schema import (
    OBSERVED_AT_KEY,
    SESSION_KEY,
    STATE_KEY,
    ExecutionError,
    RobotDatasetMetadata,
    check_robot_metadata,
    position_of,
)

#: Observations of a session whose instants are known: 30 s at 30 Hz and more.
_REMEMBERED = 1024


@dataclass(frozen=True)
class ActionOrigin:
    """Which observation an action answers.

    Args:
        session: ``session_id`` of that observation.
        observed_at_s: ``observed_at_s`` of that observation.
        planned_at_s: of the one that its chunk was planned from; None = the same.
    """

    session: int
    observed_at_s: float
    planned_at_s: float | None = None


class SafetyGate:
    """Pass only fresh, legal actions of the present session to a robot.

    A gate holds its robot, and everything of :mod:`torchrl_vla.runtime` reaches the
    robot through it: policy, teleoperator, handover, replay. It checks that an action

    - has the width and type of the robot's, is finite and within its limits;
    - changes by at most ``max_step`` and ``max_velocity``; the first one of a session
      is compared with the measured position, where the state holds it;
    - answers an observation of this session, not an overtaken one, and that neither
      that observation nor the one its chunk was planned from is too old;
    - comes in time: after ``watchdog_s`` without a fresh legal action the robot is
      stopped.

    :class:`GateOptions` name what happens otherwise. A stale action is held, or refused
    with ``"refuse"``. To hold is to send the session's last legal action again, zero in
    dimensions of reference ``"delta"``, and nothing before the first one. Every
    intervention is in :attr:`log`.

    :meth:`stop` is the emergency stop: it latches from any thread, and then no action
    reaches the robot until :meth:`release`.

    Args:
        robot: that it holds.
        options: what passes; None = ``GateOptions()``.

    Keyword Args:
        clock: the robot's; None = the monotonic one.

    Raises:
        MetadataError: the robot does not declare names, units, limits, rate and state.
        IncompatibleMetadataError: at :meth:`connect`, what is to act has other names,
            order, units or conventions.
        ActionGuardError: an action of another width or type; an illegal one with
            ``"refuse"``.
        StaleActionError: a stale action with ``"refuse"``.
        RobotStoppedError: the robot is stopped.

    Examples:
        >>> from torchrl_vla.testing import FakeClock, FakeRobot
        >>> clock = FakeClock()
        >>> robot = FakeRobot(clock=clock)
        >>> gate = SafetyGate(robot, GateOptions(max_step=0.5), clock=clock)
        >>> gate.connect()
        >>> gate.begin_session()
        >>> origin = gate.origin_of(gate.observe())
        >>> gate.send(torch.tensor([0.5, 0.0]), origin)
        tensor([0.5000, 0.0000])
        >>> gate.send(torch.tensor([torch.nan, 0.0]), origin)
        tensor([0.5000, 0.0000])
        >>> gate.log
        GateLog(not finite held: 1)
        >>> gate.disconnect()
    """

    _reference: Tensor | None  # what the next action is compared with

    def __init__(
        self,
        robot: Robot,
        options: GateOptions | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.options = GateOptions() if options is None else options
        self.clock: Clock = MonotonicClock() if clock is None else clock
        self.metadata = robot.metadata
        check_declared(self.metadata)
        self.contract = EmbodimentContract.from_metadata(self.metadata)
        self.log = GateLog()
        self._robot = robot
        self._checks = ActionChecks(self.contract, self.options)
        self._lock = threading.RLock()
        self._stopped_by: str | None = None
        reference = self.metadata.action_reference or ()
        self._is_delta = torch.tensor([r == "delta" for r in reference] or [False])
        self._forget(session=0)

    @property
    def is_connected(self) -> bool:
        """True = the robot is."""
        return self._robot.is_connected

    @property
    def stopped_by(self) -> str | None:
        """Why the robot is stopped; None = it is not."""
        return self._stopped_by

    @property
    def session(self) -> int:
        """Number of the present session; 0 = none began."""
        return self._session

    @property
    def last_sent(self) -> Tensor | None:
        """The session's last action, float32 ``[A]``; None = there is none."""
        return None if self._last is None else self._last.clone()

    def connect(self, acting: RobotDatasetMetadata | None = None) -> None:
        """Connect the robot, and compare it with what is to act.

        Args:
            acting: of the policy's training data or of the teleoperator; None = it is
                not compared.
        """
        if acting is not None:
            sides = ("what is to act", "the robot")
            check_robot_metadata("SafetyGate", acting, self.metadata, sides=sides)
        with self._lock:
            if not self._robot.is_connected:
                self._robot.connect()
            if self._robot.metadata != self.metadata:
                self._robot.disconnect()
                self.metadata.check_compatible(
                    self._robot.metadata, sides=("before", "after connecting")
                )

    def begin_session(self) -> None:
        """Begin a session: no action for an earlier observation passes any more."""
        with self._lock:
            self._forget(secrets.randbelow(2**62) + 1)

    def observe(self) -> TensorDict:
        """Return the robot's observation with ``session_id`` int64 ``[1]``.

        Raises:
            SchemaError: it is not what the metadata declare, or not finite.
            ExecutionError: it was taken in the future: the clocks differ.
        """
        observed = self._robot.observe()
        check_observation(self.metadata, observed)
        taken_s, now_s = observed[OBSERVED_AT_KEY].item(), self.clock.now_s()
        if taken_s > now_s:
            raise ExecutionError(
                f"SafetyGate: expected an observation taken before now, {now_s:.3f} s, "
                f"got one of {taken_s:.3f} s. Give robot, gate and loop one clock."
            )
        with self._lock:
            self._taken.append(taken_s)
            if self._reference is None:
                position = position_of(self.metadata, observed[STATE_KEY])
                if position is not None:
                    self._reference = self.contract.limits.clip(position)
        return observed.set(SESSION_KEY, torch.tensor([self._session]))

    def origin_of(self, observed: TensorDict) -> ActionOrigin:
        """Return the origin of an action that answers an observation."""
        return ActionOrigin(
            int(observed[SESSION_KEY].item()), observed[OBSERVED_AT_KEY].item()
        )

    def send(self, action: Tensor, origin: ActionOrigin) -> Tensor | None:
        """Send an action ``[A]`` if it may pass; return what was sent.

        Args:
            action: any float, in robot space.
            origin: which observation it answers.

        Returns:
            float32 ``[A]``; None = nothing, as there is nothing to hold yet.
        """
        self.contract.check_outside(action.unsqueeze(-2), any_horizon=True)
        action = action.detach().to("cpu", torch.float32)
        with self._lock:
            self._check_is_running(action)
            late = self._stale(origin)
            if late is not None:
                return self._react(action, late, StaleActionError(self._tell(late)))
            elapsed_s = self._elapsed_s()
            reason = self._checks.reason(action, self._reference, elapsed_s)
            reaction = None
            if reason is not None:
                clips = self.options.on_violation == "clip" and reason != "not finite"
                if not clips:
                    error = self._checks.refusal(action, reason)
                    return self._react(action, reason, error)
                wanted, reaction = action, "clipped"
                action = self._checks.clip(action, self._reference, elapsed_s)
            sent = self._command(action)
            if reason is not None and reaction is not None:
                self._note(reason, reaction, wanted, action)
            self._answered_s = origin.observed_at_s
            self._fresh_s = self.clock.now_s()
            self._step += 1
            return sent

    def hold(self, reason: str) -> Tensor | None:
        """Send the session's last action again, in place of one that did not come.

        Args:
            reason: for the log, such as ``"late policy"``.

        Returns:
            What was sent, float32 ``[A]``; None = nothing, as there was none yet.
        """
        with self._lock:
            self._check_is_running(None)
            return self._hold(None, reason)

    def stop(self, reason: str) -> None:
        """Stop the robot: no action reaches it until :meth:`release`.

        It may be called from any thread, more than once; the first reason stays.
        """
        with self._lock:
            if self._stopped_by is None:
                self._stopped_by = reason
                self._note(reason, "stopped", None, None)

    def release(self) -> None:
        """Undo :meth:`stop`; a session has to begin before the next action."""
        with self._lock:
            self._stopped_by = None
            self._forget(session=0)

    def disconnect(self) -> None:
        """Disconnect the robot, after the action that is being sent."""
        with self._lock:
            self._forget(session=0)
            self._robot.disconnect()

    def _forget(self, session: int) -> None:
        self._session, self._step = session, 0
        self._last: Tensor | None = None
        self._reference = None
        if self._is_delta.all():
            self._reference = torch.zeros(self.contract.action_dim)
        self._taken: deque[float] = deque(maxlen=_REMEMBERED)
        self._answered_s = float("-inf")
        self._fresh_s = self._sent_s = self.clock.now_s()

    def _check_is_running(self, action: Tensor | None) -> None:
        if self._stopped_by is not None:
            self._note("stopped", "refused", action, None)
            raise RobotStoppedError(
                "SafetyGate: expected a robot that runs, got one that was stopped: "
                f"{self._stopped_by}. No action was sent: the robot goes on with its "
                "last command. Look at it, then call release()."
            ).fatal()

    def _stale(self, origin: ActionOrigin) -> str | None:
        """Return why an action comes too late; None = in time."""
        options, now_s = self.options, self.clock.now_s()
        taken_s = origin.observed_at_s
        is_ours = origin.session == self._session != 0
        if not is_ours or taken_s not in self._taken:
            return "foreign session"
        if taken_s < self._answered_s:
            return "overtaken"
        if now_s - taken_s > options.max_observation_age_s:
            return "stale observation"
        planned_s = origin.planned_at_s
        if planned_s is not None and now_s - planned_s > options.max_action_age_s:
            return "stale action"
        return None

    def _elapsed_s(self) -> float:
        """Return the seconds that a change may take: a period, unless in a burst."""
        period_s = 1 / float(self.metadata.control_frequency_hz or 1)
        elapsed_s = self.clock.now_s() - self._sent_s
        if self._last is None or elapsed_s >= period_s / 2:
            return period_s
        return max(elapsed_s, 1e-6)

    def _react(self, action: Tensor, reason: str, error: Exception) -> Tensor | None:
        if self.options.on_violation == "refuse":
            self._note(reason, "refused", action, None)
            raise error
        return self._hold(action, reason)

    def _hold(self, action: Tensor | None, reason: str) -> Tensor | None:
        quiet_s = self.clock.now_s() - self._fresh_s
        if quiet_s > self.options.watchdog_s:
            self.stop("watchdog")
            raise RobotStoppedError(
                "SafetyGate: expected a fresh legal action within watchdog_s="
                f"{self.options.watchdog_s}, got none for {quiet_s:.2f} s; the last "
                f"reason is {reason!r}. The robot held its last action meanwhile, and "
                "is stopped now. Look at the policy, then call release()."
            ).fatal()
        held = None
        if self._last is not None:
            held = self._command(self._to_hold(self._last))
        self._note(reason, "held", action, held)
        self._step += 1
        return held

    def _to_hold(self, action: Tensor) -> Tensor:
        """Return the action that stays where another one led to."""
        return torch.where(self._is_delta, 0.0, action)

    def _command(self, action: Tensor) -> Tensor:
        sent = action if self.options.dry_run else self._robot.send(action.clone())
        # A driver's own limits do not widen ours: what was asked for is compared.
        self._last = action.clone()
        self._reference = self._to_hold(action)  # a delta is compared with rest
        self._sent_s = self.clock.now_s()
        return sent

    def _note(
        self, reason: str, reaction: str, before: Tensor | None, after: Tensor | None
    ) -> None:
        numbers = (None if x is None else tuple(x.tolist()) for x in (before, after))
        now_s = self.clock.now_s()
        self.log.add(GateIntervention(self._step, now_s, reason, reaction, *numbers))

    def _tell(self, late: str) -> str:
        options = self.options
        return (
            "SafetyGate: expected an action that answers an observation of this "
            f"session, at most {options.max_observation_age_s} s old and planned from "
            f"one at most {options.max_action_age_s} s old, got {late!r}. No action "
            "was sent: the robot goes on with its last command."
        )

    def __repr__(self) -> str:
        state = self._stopped_by or ("connected" if self.is_connected else "apart")
        return f"SafetyGate({self.metadata.dataset_id!r}, {state}, {self.log})"
