"""Base class of the executors whose policy runs in a worker."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from concurrent.futures import wait
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from typing_extensions import Self

from torchrl_vla.execution.action_reference import check_reference
from torchrl_vla.execution.chunk_cache import Outputs
from torchrl_vla.execution.chunk_executor import ChunkExecutor, new_serial
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.realtime.inference_workers import (
    CallersModes,
    InferenceWorker,
    PolicyCall,
)
from torchrl_vla.execution.realtime.late_action import LateAction
from torchrl_vla.execution.realtime.lateness import Lateness, Reaction
from torchrl_vla.execution.realtime.requests import AsyncState, InFlightRequest
from torchrl_vla.execution.realtime.staggered_chunks import Answer, select_envs
from torchrl_vla.schema import OBSERVATION_AGE_KEY, ExecutionError, VLAError


class BackgroundExecutor(ChunkExecutor):
    """Call the policy in a worker while its last chunk is executed (abstract).

    Requests, answers, episodes, lateness and errors are treated here; a subclass says
    when the policy is called, what it reads beside the observation, and how a new chunk
    follows the old one. Step ``t`` executes ``chunk[t - t_observed]``, by index and
    never by the wall clock; steps on which the robot stood still do not count.

    **Reads** and **writes** what every :class:`ChunkExecutor` does;
    ``observation_age`` int64 ``[*B, 1]``, the steps from the observation that the chunk
    in execution was planned from to the step that entered it. On late steps
    ``is_decision`` is False, and the policy's other outputs are those of the chunk
    before; before the first chunk they are missing.

    Args:
        policy: writes a chunk ``[*B, H, A]`` in robot space.

    Keyword Args:
        action_reference: ``"absolute"`` or ``"delta"``.
        worker: where the policy runs.
        when_late: what to do on a step for which no action is left.
        keys: of what is read and written; None = ``ExecutorKeys()``.
    """

    _state: AsyncState | None

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        action_reference: str,
        worker: InferenceWorker,
        when_late: Reaction | Lateness,
        keys: ExecutorKeys | None = None,
    ) -> None:
        check_reference(self._name, action_reference)
        super().__init__(policy, keys=keys)
        self.action_reference = action_reference
        self.worker = worker
        if isinstance(when_late, str):
            when_late = Lateness(when_late)
        self.lateness: Lateness = when_late
        self._late_action = LateAction(
            self._name, self.lateness, action_reference, self.training_metadata
        )
        #: Steps that waited for an answer in mid-episode.
        self.waits = 0
        #: Environment steps that had no action and held, repeated or zeroed one.
        self.holds = 0
        self.out_keys = [*self.out_keys, OBSERVATION_AGE_KEY]

    #: How to have the policy called earlier, for an error.
    _earlier: ClassVar[str]

    @property
    def _blends(self) -> bool:
        """True = a new chunk is joined with the old one by :meth:`_join`."""
        return False

    @abstractmethod
    def _steps_until_due(self, positions: Tensor, size: int) -> Tensor:
        """Return the steps from positions in chunks of a size to the next request."""

    def _is_due(self, positions: Tensor, size: int) -> Tensor:
        return self._steps_until_due(positions, size) <= 0

    @abstractmethod
    def _check_length(self, chunk: Tensor, size: int | None) -> None:
        """Refuse a chunk of a wrong length; ``size`` = that of the chunks before."""

    def _guide(
        self, state: AsyncState, planned: Tensor, begins: Tensor
    ) -> tuple[int, Outputs]:
        """Return the delay of a request and what the policy reads for it, ``[*B]``."""
        return 0, {}

    def _join(
        self, state: AsyncState, envs: Tensor, chunk: Tensor, position: int | Tensor
    ) -> Tensor:
        """Return new chunks ``[N, H, A]`` as they follow the old ones of ``envs``."""
        return chunk

    def reset(self) -> None:
        """Drop every chunk and request; return when the policy no longer runs.

        Raises:
            ExecutionError: it still ran after ``timeout_s`` of the lateness.
        """
        answers = [request.answer for request in self._cancel()]
        if answers and wait(answers, self.lateness.timeout_s).not_done:
            raise ExecutionError(
                f"{self._name}: expected {type(self.policy).__name__} to return within "
                f"timeout_s={self.lateness.timeout_s} of reset(), and it still runs. "
                "Its answer is dropped; do not move or change the policy meanwhile."
            )

    def close(self) -> None:
        """End the worker; a later step starts it and plans again."""
        self._cancel()
        self.worker.close()

    def _cancel(self) -> list[InFlightRequest]:
        """Drop every plan and request; return the requests that run."""
        state = self._state
        super().reset()
        requests = [] if state is None else state.requests
        return [request for request in requests if not request.answer.cancel()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        try:
            return self._act(tensordict, begins)
        except BaseException:  # Ctrl-C within a wait as well
            self._cancel()  # the next step plans again
            raise

    def _act(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        state = self._state
        if state is None:
            self._state = state = AsyncState(begins)
        else:
            state.step += 1
        arrived = self._arrived(state)
        switched = late = None
        if arrived or state.step >= state.next_event or begins.any():
            switched = self._update(state, tensordict, begins, arrived)
            late = self._late_envs(state)
            state.next_event = self._next_event(state)
        action = None if state.chunks is None else state.chunks.pop()
        if late is not None:
            begun = begins & late
            if begun.any():
                state.number(begun, new_serial())
            action = self._late_action.write(tensordict, action, state, late, begun)
        state.last_action = action
        assert action is not None
        if state.chunks is None:  # the policy's outputs are not known yet
            outputs: Outputs = {OBSERVATION_AGE_KEY: torch.zeros_like(state.serials)}
        else:
            outputs = state.chunks.outputs
        return self._write(tensordict, action, switched, outputs, self._needed(state))

    def _arrived(self, state: AsyncState) -> list[InFlightRequest]:
        """Read the answers that have arrived; return those that may be executed."""
        return [r for r in state.requests if self._has_arrived(state, r)]

    def _has_arrived(self, state: AsyncState, request: InFlightRequest) -> bool:
        """Read an answer that has arrived; return whether it may be executed."""
        if not request.has_arrived:
            if not self.worker.is_ready(request.answer, state.step):
                return False
            request.has_arrived = True
            if request.read is None:
                self._read_request(state, request)
                self._measure(state.step - request.step)
        if state.step >= request.step + request.delay:
            return True
        return state.has_empty and bool((request.envs & state.empty).any())

    def _update(
        self,
        state: AsyncState,
        tensordict: TensorDictBase,
        begins: Tensor,
        arrived: list[InFlightRequest],
    ) -> Tensor:
        """Enter answers, send requests; return the environments that begin a chunk."""
        some_begin = bool(begins.any())
        if some_begin:
            state.begin(begins)
        switched = torch.zeros_like(begins)
        for request in arrived:
            switched = switched | self._enter_due(state, request)
        due = begins
        if state.chunks is not None:
            positions, size = state.chunks.positions, state.chunks.chunk_size
            due = begins | self._is_due(positions, size) & ~state.in_flight
        timeout = self.lateness.timeout_s
        deadline = None if timeout is None else time.monotonic() + timeout
        if due.any():
            request = self._request(state, tensordict, due, begins)
            state.add(request)
            if some_begin and self._wait(state, request, deadline):
                switched = switched | self._enter(state, request, begins)
            if self._has_arrived(state, request):
                switched = switched | self._enter_due(state, request)
        if self.lateness.reaction == "wait":
            switched = switched | self._wait_for_all(state, begins, deadline)
        return switched

    def _wait_for_all(
        self, state: AsyncState, begins: Tensor, deadline: float | None
    ) -> Tensor:
        """Wait for every environment without an action; return them."""
        late = state.without_action()
        if not late.any():
            return late
        if (late & ~begins).any():
            self.waits += 1
        for request in list(state.requests):
            envs = request.envs & late
            if envs.any():
                if not self._wait(state, request, deadline):
                    self._stop(envs, f"within timeout_s={self.lateness.timeout_s}")
                self._enter(state, request, envs)
        return late

    def _late_envs(self, state: AsyncState) -> Tensor | None:
        """Count the environments without an action and return them; None = none."""
        late = state.without_action()
        if not late.any():
            return None
        reaction, most = self.lateness.reaction, self.lateness.max_late_steps
        if reaction == "stop":
            self._stop(late, "in time")
        state.note_late(late, is_idle=reaction != "repeat")
        too_late = state.late_steps > (most if most is not None else math.inf)
        if too_late.any():
            self._stop(too_late, f"for more than max_late_steps={most} steps")
        self.holds += int(late.sum())
        return late

    def _stop(self, envs: Tensor, when: str) -> None:
        indices = envs.reshape(-1).nonzero().flatten().tolist()
        raise ExecutionError(
            f"{self._name}: expected an action for env indices {indices}, got none: "
            f"the policy has not answered {when}. Call it earlier ({self._earlier}), "
            "or choose another when_late than "
            f"{self.lateness.reaction!r}. No action was sent; the last one may still "
            "be in execution."
        ).at_envs(envs)

    def _request(
        self,
        state: AsyncState,
        tensordict: TensorDictBase,
        envs: Tensor,
        begins: Tensor,
    ) -> InFlightRequest:
        """Give the worker the present observation of some environments."""
        some = None if envs.all() else envs
        delay, guide = self._guide(state, envs, begins)
        inputs = self._inputs(tensordict, some)
        if some is not None:
            guide = {key: value[envs] for key, value in guide.items()}
        for key, value in guide.items():
            inputs.set(key, value)
        modes = None
        if self.worker.runs_beside:
            modes = CallersModes()
            inputs = inputs.clone() if some is None else inputs
        batch_size = inputs.batch_size
        job = PolicyCall(self.policy, inputs, modes)
        answer = self.worker.submit(job, state.step)
        return InFlightRequest(
            envs, some, batch_size, state.step, answer, delay, dict(guide)
        )

    def _wait(
        self, state: AsyncState, request: InFlightRequest, deadline: float | None
    ) -> bool:
        """Wait for an answer until the deadline and read it; return if it is there."""
        if request.read is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self.worker.wait(request.answer, state.step, left):
                return False
            self._read_request(state, request)
            if state.step > request.step:
                self._measure(state.step - request.step)
        return True

    def _read_request(self, state: AsyncState, request: InFlightRequest) -> None:
        """Read and check an answer that has arrived."""
        try:
            answer = request.answer.result()
        except VLAError:
            raise
        except Exception as error:
            raise ExecutionError(
                f"{self._name}: expected {type(self.policy).__name__} to return "
                f"a chunk in its worker, got {type(error).__name__}: {error}. The "
                "next step plans again. No action was sent."
            ) from error
        chunk, outputs, serial = self._read_answer(answer, request.batch_size)
        self._check_length(
            chunk, None if state.chunks is None else state.chunks.chunk_size
        )
        request.read = chunk, {**outputs, **self._added(request, chunk)}, serial

    def _added(self, request: InFlightRequest, chunk: Tensor) -> Outputs:
        return request.outputs

    def _measure(self, steps: int) -> None:
        """Note how many steps an answer took."""

    def _enter_due(self, state: AsyncState, request: InFlightRequest) -> Tensor:
        """Enter an answer where it may be executed now; return where."""
        envs = request.envs
        if state.step < request.step + request.delay:
            envs = envs & state.empty
        return self._enter(state, request, envs) if envs.any() else envs

    def _enter(
        self, state: AsyncState, request: InFlightRequest, envs: Tensor
    ) -> Tensor:
        """Let some of a request's environments execute its answer; return them."""
        assert request.read is not None
        age = state.step - request.step
        chunk, outputs, serial = request.read
        size = chunk.shape[-2]
        if age >= size:
            raise ExecutionError(
                f"{self._name}: expected a chunk of {size} actions within as many "
                f"steps, got {size} at {self.chunk_key!r} after {age}. The policy is "
                "too slow for its chunks. No action was sent."
            )
        position = state.entry_position(age, envs)
        planned = request.planned
        is_all = (
            not self._blends
            and planned is None
            and isinstance(position, int)
            and bool(envs.all())
        )
        answer: Answer = (chunk, outputs, serial)
        if not is_all:
            answer = select_envs(answer, envs if planned is None else envs[planned])
        chunk, outputs, serial = answer
        if self._blends:
            chunk = self._join(state, envs, chunk, position)
        ages = torch.full((*chunk.shape[:-2], 1), age, device=chunk.device)
        answer = chunk, {**outputs, OBSERVATION_AGE_KEY: ages}, serial
        state.enter(envs, answer, position, is_all)
        state.remove(request, envs)
        return envs

    def _needed(self, state: AsyncState) -> Tensor:
        """Return where the next observation may be read by the policy."""
        if state.chunks is None:
            return torch.ones_like(state.empty)
        newest = state.newest_positions()
        return self._is_due(newest, state.chunks.chunk_size)

    def _next_event(self, state: AsyncState) -> int:
        """Return the next step on which more than an answer can change the plan."""
        if state.chunks is None:
            return state.step
        positions, size = state.chunks.positions, state.chunks.chunk_size
        left = self._steps_until_due(positions, size)
        if state.requests:
            left = torch.where(state.in_flight, size - positions, left)
            left = left.masked_fill(state.empty, 0)
        return state.step + int(left.min())

    def extra_repr(self) -> str:
        """Show where the policy runs, and how often it was late."""
        return (
            f"worker={type(self.worker).__name__}, "
            f"when_late={self.lateness.reaction!r}, waits={self.waits}, "
            f"holds={self.holds}"
        )
