"""Policy with a deadline: a late or hung one never blocks the robot."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.realtime.inference_workers import CallersModes
from torchrl_vla.execution.transparent_wrapper import PolicyWrapper
from torchrl_vla.runtime.robot_env import ANSWERED_AT_KEY, IS_HELD_KEY
from torchrl_vla.schema import (
    ACTION_KEY,
    IS_DECISION_KEY,
    OBSERVED_AT_KEY,
    PREVIOUS_ACTION_KEY,
    SESSION_KEY,
    MissingKeyError,
    check_robot_space,
)

Result = TypeVar("Result")


class PolicyWorker(Protocol):
    """Run a policy's calls one after the other, beside the control loop."""

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Take a call; the future need not be done."""
        ...

    def wait(self, answer: Future[Result], timeout_s: float) -> bool:
        """Wait for an answer; False = it is not there in time."""
        ...

    def close(self) -> None:
        """Take no further call."""
        ...


class PolicyThread:
    """Run a policy's calls in one thread, which does not keep the process alive.

    Examples:
        >>> thread = PolicyThread()
        >>> answer = thread.submit(lambda: 6 * 7)
        >>> thread.wait(answer, timeout_s=10.0), answer.result()
        (True, 42)
        >>> thread.close()
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] | None = None

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Hand a call to the thread, behind those that it has."""
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(
                target=_work, args=(self._jobs,), name="torchrl_vla-policy", daemon=True
            ).start()
        answer: Future[Result] = Future()
        self._jobs.put(lambda: _answer(answer, job))
        return answer

    def wait(self, answer: Future[Result], timeout_s: float) -> bool:
        """Wait for an answer; False = it is not there in time."""
        return bool(wait_for([answer], timeout_s).done)

    def close(self) -> None:
        """End the thread after the call that runs, without waiting for it."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


@dataclass(eq=False)
class _Call:
    """A call that was not answered yet."""

    answer: Future[TensorDictBase]
    session: int
    observed_at: Tensor


class DeadlinePolicy(PolicyWrapper):
    """Call a policy or executor beside the loop, and give it a deadline on every step.

    Where the answer is late, the robot holds: :class:`RobotEnv` sends the last legal
    action again and the gate counts the time; after ``GateOptions.watchdog_s`` it stops
    the robot. A late answer is taken on the step on which it arrives, with the instant
    of its own observation, so that the gate refuses it where it is too old. One call is
    in flight at most. An answer to an earlier session is dropped. An error of the
    policy is raised on the step that waits for it.

    Every other member is the policy's (:class:`PolicyWrapper`).

    **Reads** what the policy reads; ``session_id`` and ``observed_at_s`` of the
    :class:`RobotEnv`; ``previous_action``.

    **Writes** what the policy writes; ``is_held`` bool ``[*B, 1]``, True = no answer in
    time: ``action`` is ``previous_action``, and ``is_decision`` is False;
    ``answered_at_s`` float64 ``[*B, 1]``, ``observed_at_s`` of the observation that
    ``action`` answers.

    Args:
        policy: writes ``action`` in robot space.

    Keyword Args:
        deadline_s: seconds that a step waits for an answer: less than a period.
        worker: runs the calls; None = a :class:`PolicyThread`.

    Raises:
        ValueError: the deadline is not positive.
        SpaceError: the policy is of model space.
        MissingKeyError: the tensordict is not of a :class:`RobotEnv`.

    Examples:
        >>> from torchrl_vla.runtime import RobotEnv, SafetyGate
        >>> from torchrl_vla.testing import (
        ...     FakeClock,
        ...     FakePolicyWorker,
        ...     FakeRobot,
        ...     SlowPolicy,
        ... )
        >>> clock = FakeClock()
        >>> robot = FakeRobot(clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave")
        >>> slow = FakePolicyWorker(clock, [0.0, 0.05, 0.0])  # the second one is late
        >>> policy = DeadlinePolicy(
        ...     SlowPolicy(lambda call: torch.full((2,), call / 10)),
        ...     deadline_s=0.02,
        ...     worker=slow,
        ... )
        >>> env.rollout(4, policy)["is_held"].flatten()
        tensor([False,  True, False, False])
        >>> [round(action[0].item(), 1) for _, action in robot.sent]
        [0.0, 0.0, 0.1, 0.2]
        >>> env.close()
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        deadline_s: float,
        worker: PolicyWorker | None = None,
    ) -> None:
        check_robot_space("DeadlinePolicy", policy)
        super().__init__(policy)
        if not 0 < deadline_s < float("inf"):
            raise ValueError(
                f"DeadlinePolicy: expected deadline_s > 0, got {deadline_s}."
            )
        self.deadline_s = deadline_s
        self.worker: PolicyWorker = PolicyThread() if worker is None else worker
        self._writes = list(self.out_keys)
        ours = [SESSION_KEY, OBSERVED_AT_KEY, PREVIOUS_ACTION_KEY]
        self.in_keys = list(dict.fromkeys([*self.in_keys, *ours]))
        self.out_keys = [*self._writes, IS_HELD_KEY, ANSWERED_AT_KEY]
        self._session = 0
        self._call: _Call | None = None
        self._written: TensorDictBase | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's answer if it is there in time, else hold."""
        call = self._call_for(tensordict)
        is_late = not self.worker.wait(call.answer, self.deadline_s)
        if is_late:
            self._hold(tensordict)
        else:
            self._call = None
            answer = call.answer.result()
            self._written = answer.select(*self._writes, strict=False)
            tensordict.update(self._written)
        shape = (*tensordict.batch_size, 1)
        tensordict.set(
            IS_HELD_KEY, torch.full(shape, is_late, device=tensordict.device)
        )
        return tensordict.set(ANSWERED_AT_KEY, call.observed_at.clone())

    def warm_up(self, tensordict: TensorDictBase) -> None:
        """Call the policy once and wait as long as it takes, before a session.

        Compilation and the first allocation of memory are then over. An executor
        forgets what it planned.
        """
        self.policy(tensordict.copy())
        reset = getattr(self.policy, "reset", None)
        if reset is not None:
            reset()

    def close(self) -> None:
        """End the thread, without waiting for a call that hangs."""
        self.worker.close()

    def _call_for(self, tensordict: TensorDictBase) -> _Call:
        """Return the call in flight, or begin one for this observation."""
        session = tensordict.get(SESSION_KEY, None)
        if session is None or tensordict.get(OBSERVED_AT_KEY, None) is None:
            raise MissingKeyError(
                f"DeadlinePolicy: expected {SESSION_KEY!r} and {OBSERVED_AT_KEY!r}, "
                f"got only {sorted(map(str, tensordict.keys(True, True)))}. Act in a "
                "RobotEnv, which writes them. No action was sent."
            )
        number = int(session.item())
        if self._call is None or self._call.session != number:
            if self._session != number:
                self._session, self._written = number, None
            step, modes = tensordict.copy(), CallersModes()

            def call() -> TensorDictBase:
                with modes:
                    return self.policy(step)

            answer = self.worker.submit(call)
            self._call = _Call(answer, number, tensordict.get(OBSERVED_AT_KEY))
        return self._call

    def _hold(self, tensordict: TensorDictBase) -> None:
        if self._written is not None:
            tensordict.update(self._written)
        decided = tensordict.get(IS_DECISION_KEY, None)
        if decided is not None:
            tensordict.set(IS_DECISION_KEY, torch.zeros_like(decided))
        tensordict.set(ACTION_KEY, tensordict.get(PREVIOUS_ACTION_KEY).clone())

    def extra_repr(self) -> str:
        """Show the deadline."""
        return f"deadline_s={self.deadline_s}"


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _answer(answer: Future[Result], job: Callable[[], Result]) -> None:
    try:
        answer.set_result(job())
    except BaseException as error:  # raised by whoever waits for the answer
        answer.set_exception(error)
