"""Workers that run the policy while its last chunk is executed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch

Result = TypeVar("Result")


class InferenceWorker(ABC):
    """Run jobs one after the other and report when each is done (abstract).

    :class:`ThreadWorker` works beside the control loop;
    :class:`StepClockWorker` counts steps instead, so that a simulation or a test has
    the same delays every time. Time is counted in steps of the executor only.
    """

    @abstractmethod
    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Take a job at a step; the future need not be done."""

    @abstractmethod
    def is_ready(self, answer: Future[Result], step: int) -> bool:
        """Return whether an answer has arrived by a step."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Wait for the job that runs, drop the others, and end what was begun."""


class ThreadWorker(InferenceWorker):
    """Run the policy in one thread of its own.

    The first job starts the thread. PyTorch releases Python's lock in its kernels, so
    that the control loop continues meanwhile. Copies share no thread.

    Examples:
        >>> worker = ThreadWorker()
        >>> answer = worker.submit(lambda: 6 * 7, step=0)
        >>> answer.result()
        42
        >>> worker.close()
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, job: Callable[[], Result], step: int) -> Future[Result]:
        """Hand a job to the thread, behind those that it has."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="torchrl_vla-policy")
        return self._pool.submit(job)

    def is_ready(self, answer: Future[Result], step: int) -> bool:
        """Return whether the thread is done with it."""
        return answer.done()

    def close(self) -> None:
        """Wait for the job that runs, drop the others, and end the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __getstate__(self) -> dict[str, object]:
        return {"_pool": None}


class StepClockWorker(InferenceWorker):
    """Make every answer available a given number of steps after its request.

    The policy runs at once, in the caller's thread, and its answer is held back.

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
            torch.autocast(device, torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        ]

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(torch.inference_mode(self.inference))
        self.stack.enter_context(torch.set_grad_enabled(self.grad))
        for autocast in self.autocasts:
            self.stack.enter_context(autocast)

    def __exit__(self, *error: object) -> None:
        self.stack.close()
