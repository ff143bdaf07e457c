"""Workers that run the policy while its last chunk is executed."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import ClassVar, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

Result = TypeVar("Result")


class InferenceWorker(ABC):
    """Run jobs one after the other and report when each is done (abstract).

    :class:`ThreadWorker` works beside the control loop, :class:`ProcessWorker` in a
    process of its own; :class:`StepClockWorker` counts steps instead, so that a
    simulation or a test has the same delays every time. An executor counts time in its
    own steps; only :meth:`wait` uses a clock.
    """

    #: False = a job is done within :meth:`submit`, in the caller's thread.
    runs_beside: ClassVar[bool] = True

    @abstractmethod
    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Take a job at a step; the future need not be done."""

    def is_ready(self, answer: Future[Result], step: int) -> bool:
        """Return whether an answer has arrived by a step."""
        return answer.done()

    def wait(
        self, answer: Future[Result], step: int, timeout_s: float | None = None
    ) -> bool:
        """Wait within a step; return whether the answer has arrived.

        Args:
            answer: of :meth:`submit`.
            step: the present one.
            timeout_s: the longest wait; None = as long as it takes.
        """
        return bool(wait([answer], timeout_s).done)

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Wait for the job that runs, drop the others, and end what was begun."""


class ThreadWorker(InferenceWorker):
    """Run the policy in one thread of its own.

    The first job starts the thread. PyTorch releases Python's lock in its kernels, so
    that the control loop continues meanwhile. Copies share no thread. A thread cannot
    be stopped from outside: a job that hangs is left behind when the worker closes,
    and does not keep the process from ending.

    Examples:
        >>> worker = ThreadWorker()
        >>> answer = worker.submit(lambda: 6 * 7, step=0)
        >>> answer.result()
        42
        >>> worker.close()
    """

    #: Seconds that :meth:`close` waits for the job that runs.
    grace_s: float = 5.0

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._jobs: SimpleQueue = SimpleQueue()

    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Hand a job to the thread, behind those that it has."""
        if self._thread is None:
            self._jobs = SimpleQueue()
            name, jobs = "torchrl_vla-policy", (self._jobs,)
            self._thread = Thread(target=_work, args=jobs, name=name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        answer: Future[Result] = Future()
        self._jobs.put((answer, job))
        return answer

    def close(self) -> None:
        """Wait for the job that runs, drop the others, and end the thread.

        Warns:
            RuntimeWarning: the job did not end within ``grace_s``; its thread is left
                behind.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        while True:
            try:
                answer, _ = self._jobs.get_nowait()
            except Empty:
                break
            answer.cancel()
        self._jobs.put(None)
        thread.join(self.grace_s)
        if thread.is_alive():
            warnings.warn(
                f"{type(self).__name__}: expected the policy to return within "
                f"{self.grace_s} s of close(), and it still runs. Its thread is left "
                "behind; it ends with the process.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]


def _work(jobs: SimpleQueue) -> None:
    while (item := jobs.get()) is not None:
        answer, job = item
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(job())
            except BaseException as error:
                answer.set_exception(error)
        del item, answer, job  # an idle thread keeps nothing alive


class StepClockWorker(InferenceWorker):
    """Make every answer available a given number of steps after its request.

    The policy runs at once, in the caller's thread, and its answer is held back. A wait
    without a limit is over at once; one with a limit never brings an answer forward,
    since within a step no time passes.

    Args:
        delay_steps: steps from a request to its answer; 0 = within the same step.

    Raises:
        ValueError: the delay is negative.

    Examples:
        >>> worker = StepClockWorker(delay_steps=2)
        >>> answer = worker.submit(lambda: 6 * 7, step=10)
        >>> [worker.is_ready(answer, step) for step in (10, 11, 12)]
        [False, False, True]
    """

    runs_beside = False

    def __init__(self, delay_steps: int) -> None:
        if delay_steps < 0:
            raise ValueError(
                f"StepClockWorker: expected delay_steps >= 0, got {delay_steps}."
            )
        self.delay_steps = delay_steps

    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Run the job now; its answer is available later."""
        answer = _Timed(step + self.delay_steps)
        try:
            answer.set_result(job())
        except Exception as error:
            answer.set_exception(error)
        return answer

    def is_ready(self, answer: Future[Result], step: int) -> bool:
        """Return whether the delay is over."""
        assert isinstance(answer, _Timed)
        return step >= answer.ready_at

    def wait(
        self, answer: Future[Result], step: int, timeout_s: float | None = None
    ) -> bool:
        """Return whether the delay is over, or may be skipped (``timeout_s`` None)."""
        return timeout_s is None or self.is_ready(answer, step)


class _Timed(Future):
    def __init__(self, ready_at: int) -> None:
        super().__init__()
        self.ready_at = ready_at


class CallersModes:
    """Context with the thread-local modes of PyTorch of the thread that made it."""

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.inference = torch.is_inference_mode_enabled()
        self.autocasts = [
            (device, torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        ]

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(torch.inference_mode(self.inference))
        self.stack.enter_context(torch.set_grad_enabled(self.grad))
        for device, dtype in self.autocasts:
            self.stack.enter_context(torch.autocast(device, dtype))

    def __exit__(self, *error: object) -> None:
        self.stack.close()


@dataclass(frozen=True, eq=False)
class PolicyCall:
    """A call of a policy as a job, in the modes of whoever made it.

    Args:
        policy: is called.
        inputs: with these.
        modes: in these; None = those of the thread that runs it.
    """

    policy: TensorDictModuleBase
    inputs: TensorDictBase
    modes: CallersModes | None = None

    def __call__(self) -> TensorDictBase:
        """Return what the policy writes."""
        if self.modes is None:
            return self.policy(self.inputs)
        with self.modes:
            return self.policy(self.inputs)
