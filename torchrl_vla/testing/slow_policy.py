"""Policy that is late, hangs or fails on a chosen call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import ACTION_KEY, STATE_KEY

Result = TypeVar("Result")


class _Clock(Protocol):
    def now_s(self) -> float: ...

    def sleep_until_s(self, instant_s: float) -> None: ...


class SlowPolicy(TensorDictModuleBase):
    """Write the action of a script, after a delay (a policy for tests).

    **Reads** ``("observation", "state")``. **Writes** ``action`` float32 ``[*B, A]``.

    Args:
        script: takes the number of the call, from 0, and returns the action ``[A]``; it
            may raise.
        delay_s: what each call takes in real time.

    Examples:
        >>> from tensordict import TensorDict
        >>> policy = SlowPolicy(lambda call: torch.full((2,), float(call)))
        >>> step = TensorDict({"observation": {"state": torch.zeros(1, 2)}}, [1])
        >>> policy(step)["action"], policy(step)["action"]
        (tensor([[0., 0.]]), tensor([[1., 1.]]))
    """

    def __init__(self, script: Callable[[int], Tensor], delay_s: float = 0.0) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [STATE_KEY], [ACTION_KEY]
        self.script, self.delay_s, self.calls = script, delay_s, 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Wait, and write the action."""
        call, self.calls = self.calls, self.calls + 1
        if self.delay_s:
            time.sleep(self.delay_s)
        action = self.script(call).to(torch.float32)
        return tensordict.set(ACTION_KEY, action.expand(*tensordict.shape, -1).clone())


class FakePolicyWorker:
    """Make each answer available after a delay on a fake clock.

    It stands where a :class:`~torchrl_vla.runtime.PolicyThread` does. The policy runs
    at once, in the caller's thread, and its answer is held back.

    Args:
        clock: that the loop waits with.
        delays_s: of the calls, in order; the last one is of all further calls.

    Examples:
        >>> from torchrl_vla.testing import FakeClock
        >>> worker = FakePolicyWorker(FakeClock(), [0.5])
        >>> answer = worker.submit(lambda: 6 * 7)
        >>> worker.wait(answer, timeout_s=0.2), worker.wait(answer, timeout_s=0.4)
        (False, True)
    """

    def __init__(self, clock: _Clock, delays_s: Sequence[float]) -> None:
        self.clock, self.delays_s = clock, list(delays_s)
        self._calls = 0
        self._ready_s: dict[int, float] = {}

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Run a job now; its answer is available later."""
        answer: Future[Result] = Future()
        delay = self.delays_s[min(self._calls, len(self.delays_s) - 1)]
        self._calls += 1
        self._ready_s[id(answer)] = self.clock.now_s() + delay
        try:
            answer.set_result(job())
        except Exception as error:
            answer.set_exception(error)
        return answer

    def wait(self, answer: Future[Result], timeout_s: float) -> bool:
        """Wait for an answer on the clock; False = it is not there in time."""
        until_s = self.clock.now_s() + timeout_s
        ready_s = self._ready_s[id(answer)]
        self.clock.sleep_until_s(min(until_s, ready_s))
        return ready_s <= until_s

    def close(self) -> None:
        """End nothing."""
