"""Asynchronous executor: the policy runs in a thread while a chunk is executed."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.action_reference import MAKE_ABSOLUTE, check_reference
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.realtime.inference_workers import (
    CallersModes,
    InferenceWorker,
    ThreadWorker,
)
from torchrl_vla.execution.realtime.requests import AsyncState, InFlightRequest
from torchrl_vla.execution.realtime.staggered_chunks import (
    Answer,
    StaggeredChunks,
    select_envs,
)
from torchrl_vla.schema import (
    OBSERVATION_AGE_KEY,
    ExecutionError,
)

WhenLate = Literal["wait", "hold", "raise"]


class AsyncExecutor(ChunkExecutor):
    """Call the policy in a worker thread before the chunk is used up.

    The policy runs on a copy of the present observation while the old chunk is
    executed. When its answer arrives, the actions for the steps that have passed are
    left out, by index and never by the wall clock: step ``t`` executes
    ``chunk[t - t_observed]``. A delay of up to ``request_at`` steps costs no waiting.

    Note:
        Nothing makes the new chunk continue the old one, so the motion may jump where
        they meet; :class:`RealTimeChunking` prevents that, for policies that take a
        guide. At the beginning of an episode there is nothing to execute, and the step
        waits for the answer, whatever ``when_late`` says.

    The policy runs under the interaction type that the process has at that moment,
    which is not the thread's own: keep it while a request is in flight. Environments
    that are reset drop their requests.

    **Reads** the policy's ``in_keys``; ``is_init`` bool ``[*B, 1]``; ``decision_index``
    and ``action`` of the step before, if they are there.

    **Writes** what every :class:`ChunkExecutor` does, of the chunk in execution:
    ``is_decision`` is True on the first step that executes a new chunk;
    ``observation_age`` int64 ``[*B, 1]``, the steps from the observation that the chunk
    in execution was planned from to that step.

    Args:
        policy: writes a chunk ``[*B, H, A]`` in robot space.

    Keyword Args:
        request_at: the policy is called on the steps that begin with this many actions
            left or fewer, ``0 .. H - 1``. LeRobot's ``chunk_size_threshold`` is the
            same as a fraction of ``H``. 0 = only when none is left.
        action_reference: what the actions are measured from, ``"absolute"`` or
            ``"delta"``; chunks that are relative to a state cannot be entered late.
        worker: where the policy runs; None = a :class:`ThreadWorker` of its own.
        when_late: what to do on a step for which no action is left: ``"wait"`` for the
            answer, as a simulator can; ``"hold"`` the last action, for absolute
            targets; ``"raise"``.
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: an argument is none of the above.
        ExecutionError: the policy failed in its thread; an answer came after its last
            action; none was left and ``when_late="raise"``; and as
            :class:`ChunkExecutor`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.execution import StepClockWorker
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.arange(4.0).view(4, 1) / 10,
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = AsyncExecutor(
        ...     policy,
        ...     request_at=2,
        ...     action_reference="absolute",
        ...     worker=StepClockWorker(delay_steps=1),
        ... )
        >>> for step in range(5):
        ...     td = TensorDict(state=torch.full((1, 1), float(step)))
        ...     td.batch_size = [1]
        ...     td["is_init"] = torch.full((1, 1), step == 0)
        ...     td = executor(td)
        ...     print(f"{td['action'].item():.1f}", td["observation_age"].item())
        0.0 0
        0.1 0
        0.2 0
        2.1 1
        2.2 1
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        request_at: int,
        action_reference: str,
        worker: InferenceWorker | None = None,
        when_late: WhenLate = "wait",
        keys: ExecutorKeys | None = None,
    ) -> None:
        if isinstance(request_at, bool) or not isinstance(request_at, int):
            raise ValueError(
                "AsyncExecutor: expected a number of actions at argument 'request_at', "
                f"got {request_at!r}. Multiply a fraction by the chunk's length."
            )
        if request_at < 0 or when_late not in get_args(WhenLate):
            raise ValueError(
                "AsyncExecutor: expected request_at >= 0 and when_late in "
                f"{list(get_args(WhenLate))}, got {request_at} and {when_late!r}."
            )
        check_reference("AsyncExecutor", action_reference)
        if when_late == "hold" and action_reference == "delta":
            raise ValueError(
                "AsyncExecutor: expected when_late 'wait' or 'raise' for actions of "
                "reference 'delta', got 'hold': a delta that is held moves on. "
                f"{MAKE_ABSOLUTE}"
            )
        super().__init__(policy, keys=keys)
        self.request_at = request_at
        self.action_reference = action_reference
        self.when_late: WhenLate = when_late
        self.worker = ThreadWorker() if worker is None else worker
        #: Steps that waited for an answer in mid-episode.
        self.waits = 0
        #: Environment steps that held their last action.
        self.holds = 0
        self.out_keys = [*self.out_keys, OBSERVATION_AGE_KEY]

    def reset(self) -> None:
        """Drop every chunk and request; return when the policy no longer runs."""
        state: AsyncState | None = self._state
        super().reset()
        for request in state.requests if state is not None else ():
            if not request.answer.cancel():
                request.answer.exception()

    def close(self) -> None:
        """End the worker; a later step starts it and plans again."""
        self.reset()
        self.worker.close()

    def __enter__(self) -> AsyncExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        state: AsyncState | None = self._state
        switched = None
        if state is None:
            self._state = state = self._first_state(tensordict, begins)
            switched = begins
        else:
            state.step += 1
            if state.steps_until_event <= 0 or begins.any():
                switched = self._update(state, tensordict, begins)
        if switched is not None:
            state.steps_until_event = self._steps_to_next_request(state)
        state.steps_until_event -= 1
        action = state.chunks.pop()
        needed = self._is_due(state, state.newest_positions())
        return self._write(tensordict, action, switched, state.chunks.outputs, needed)

    def _first_state(self, tensordict: TensorDictBase, begins: Tensor) -> AsyncState:
        request = self._request(tensordict, begins, step=0)
        chunk, outputs, serial = self._answer_of(request)
        if chunk.shape[-2] <= self.request_at:
            raise ExecutionError(
                f"AsyncExecutor: expected chunks of more than request_at="
                f"{self.request_at} actions at {self.chunk_key!r}, got "
                f"{chunk.shape[-2]}: it would plan from the same observation again. No "
                "action was sent."
            )
        outputs[OBSERVATION_AGE_KEY] = torch.zeros_like(begins.unsqueeze(-1)).long()
        return AsyncState(StaggeredChunks((chunk, outputs, serial)))

    def _update(
        self, state: AsyncState, tensordict: TensorDictBase, begins: Tensor
    ) -> Tensor:
        """Enter answers, send requests; return the environments that begin a chunk."""
        state.drop(begins)
        switched = begins.clone()
        for request in list(state.requests):
            if self.worker.is_ready(request.answer, state.step):
                switched |= self._enter(state, request, request.envs)
        due = begins | self._is_due(state, state.chunks.positions) & ~state.in_flight
        if due.any():
            request = self._request(tensordict, due, state.step)
            state.add(request)
            self._enter(state, request, begins)  # nothing else could be executed
            if self.worker.is_ready(request.answer, state.step):
                switched |= self._enter(state, request, request.envs)
        late = state.chunks.positions >= state.chunks.chunk_size
        return switched | self._meet_late(state, late) if late.any() else switched

    def _meet_late(self, state: AsyncState, late: Tensor) -> Tensor:
        """Treat environments without an action; return those that begin a chunk."""
        if self.when_late == "hold":
            self.holds += int(late.sum())
            return torch.zeros_like(late)
        if self.when_late == "raise":
            envs = late.reshape(-1).nonzero().flatten().tolist()
            self._state = None
            raise ExecutionError(
                f"AsyncExecutor: expected an action for env indices {envs}, got none: "
                f"the policy has not answered within request_at={self.request_at} "
                "steps. Increase request_at, or choose when_late='hold'. No action was "
                "sent; the last one may still be in execution."
            )
        self.waits += 1
        for request in list(state.requests):
            self._enter(state, request, request.envs & late)
        return late

    def _request(
        self, tensordict: TensorDictBase, envs: Tensor, step: int
    ) -> InFlightRequest:
        """Give the worker a copy of the present observation of some environments."""
        some = None if envs.all() else envs
        inputs = self._inputs(tensordict, some)
        if some is None:
            inputs = inputs.clone()
        job = partial(_run, self.policy, inputs, CallersModes())
        answer = self.worker.submit(job, step)
        return InFlightRequest(envs, some, inputs.batch_size, step, answer)

    def _enter(
        self, state: AsyncState, request: InFlightRequest, envs: Tensor
    ) -> Tensor:
        """Let some of a request's environments execute its answer; return them."""
        if envs.any():
            position, size = state.step - request.step, state.chunks.chunk_size
            chunk, outputs, serial = select_envs(
                self._answer_of(request),
                envs if request.planned is None else envs[request.planned],
            )
            if position >= size or chunk.shape[-2] != size:
                self._state = None
                raise ExecutionError(
                    f"AsyncExecutor: expected a chunk of {size} actions within as many "
                    f"steps, got {chunk.shape[-2]} at {self.chunk_key!r} after "
                    f"{position}. The policy is too slow for its chunks, or changes "
                    "their length. No action was sent."
                )
            age = torch.full((len(chunk), 1), position, device=chunk.device)
            outputs[OBSERVATION_AGE_KEY] = age
            state.chunks.replace(envs, (chunk, outputs, serial), position)
        state.remove(request, envs)
        return envs

    def _answer_of(self, request: InFlightRequest) -> Answer:
        """Return a request's answer; wait for it if it is not there."""
        if request.read is None:
            try:
                answer = request.answer.result()
            except Exception as error:
                self._state = None
                raise ExecutionError(
                    f"AsyncExecutor: expected {type(self.policy).__name__} to return "
                    f"a chunk in its worker, got {type(error).__name__}: {error}. The "
                    "next step plans again. No action was sent."
                ) from error
            request.read = self._read_answer(answer, request.batch_size)
        return request.read

    def _is_due(self, state: AsyncState, positions: Tensor) -> Tensor:
        return state.chunks.chunk_size - positions <= self.request_at

    def _steps_to_next_request(self, state: AsyncState) -> int:
        """Return the number of steps on which only a reset can change the plan."""
        if state.requests:
            return 0
        position = int(state.chunks.positions.max())
        return state.chunks.chunk_size - self.request_at - position

    def extra_repr(self) -> str:
        """Show when the policy is called, where it runs, and how often it was late."""
        return (
            f"request_at={self.request_at}, worker={type(self.worker).__name__}, "
            f"when_late={self.when_late!r}, waits={self.waits}, holds={self.holds}"
        )


def _run(
    policy: TensorDictModuleBase, inputs: TensorDictBase, modes: CallersModes
) -> TensorDictBase:
    with modes:
        return policy(inputs)
