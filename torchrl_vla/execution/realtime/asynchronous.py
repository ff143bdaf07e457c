"""Execute one chunk while the policy thinks about the next."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.action_reference import check_reference
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.realtime.inference_workers import (
    CallersModes,
    InferenceWorker,
    ThreadWorker,
)
from torchrl_vla.execution.realtime.requests import AsyncState, InFlightRequest
from torchrl_vla.execution.realtime.staggered_chunks import (
    Answer,
    StaggeredChunks,
    rows_of,
)
from torchrl_vla.schema import (
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    OBSERVATION_AGE_KEY,
    ExecutionError,
)

WhenLate = Literal["wait", "hold", "raise"]


class AsyncExecutor(ChunkExecutor):
    """Ask before the chunk is used up, and go on with it until the answer is there.

    The policy runs in a worker thread about a copy of the observation of now. When its
    answer arrives, the actions that it meant for steps which have gone by are left
    out, by index and never by the clock on the wall: for step ``t`` it gave
    ``chunk[t - t_observed]``. A delay of up to ``request_at`` steps costs no waiting.
    The surprise: nothing makes the new chunk continue the old one, so the motion may
    jump where they meet; :class:`RealTimeChunking` does, for policies that can. At an
    episode's beginning there is nothing to execute, and the step waits for the answer,
    whatever ``when_late`` says.

    The policy sees the process's interaction type of the moment when it runs, which is
    not the thread's own: keep it while an answer is on its way. Rows that are reset
    drop theirs.

    **Reads** the actor's ``in_keys``; ``is_init`` bool ``[*B, 1]``; ``decision_index``
    and ``action`` of the step before, if they are there.

    **Writes** what every :class:`ChunkExecutor` does, of the chunk in execution:
    ``is_decision`` is True on the first step that executes a new chunk;
    ``observation_age`` int64 ``[*B, 1]``, the steps from the observation that the chunk
    in execution was planned from to that step.

    Args:
        actor: policy that writes a chunk ``[*B, H, A]``.

    Keyword Args:
        request_at: the policy is asked on the steps that begin with this many actions
            left or fewer, ``0 .. H - 1``. LeRobot's ``chunk_size_threshold`` is the
            same as a fraction of ``H``. 0 = only when none is left.
        action_reference: what the actions are measured from, ``"absolute"`` or
            ``"delta"``; chunks that are relative to a state cannot be entered late.
        worker: where the policy runs; None = a :class:`ThreadWorker` of its own.
        when_late: what to do on a step for which no action is left: ``"wait"`` for the
            answer, as a simulator can; ``"hold"`` the last action, for absolute
            targets; ``"raise"``.
        chunk_key: see :class:`ChunkExecutor`, as for the other keys.
        action_key: see there.
        init_key: see there.
        decision_key: see there.
        decision_index_key: see there.

    Raises:
        ValueError: an argument is none of the above.
        ExecutionError: the policy failed in its thread; an answer came after its last
            action; none was left and ``when_late="raise"``; see
            :class:`ChunkExecutor`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.execution import StepClockWorker
        >>> actor = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.arange(4.0).view(4, 1) / 10,
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = AsyncExecutor(
        ...     actor,
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
        actor: TensorDictModuleBase,
        *,
        request_at: int,
        action_reference: str,
        worker: InferenceWorker | None = None,
        when_late: WhenLate = "wait",
        chunk_key: NestedKey | None = None,
        action_key: NestedKey = ACTION_KEY,
        init_key: NestedKey = IS_INIT_KEY,
        decision_key: NestedKey = IS_DECISION_KEY,
        decision_index_key: NestedKey = DECISION_INDEX_KEY,
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
                "reference 'delta', got 'hold': a delta that is held moves on."
            )
        super().__init__(
            actor,
            chunk_key=chunk_key,
            action_key=action_key,
            init_key=init_key,
            decision_key=decision_key,
            decision_index_key=decision_index_key,
        )
        self.request_at = request_at
        self.action_reference = action_reference
        self.when_late: WhenLate = when_late
        self.worker = ThreadWorker() if worker is None else worker
        #: Steps that waited for an answer in mid-episode.
        self.waits = 0
        #: Rows and steps that held their last action.
        self.holds = 0
        self.out_keys = [*self.out_keys, OBSERVATION_AGE_KEY]

    def reset(self) -> None:
        """Forget every chunk and every answer; return when the policy is at rest."""
        state: AsyncState | None = self._state
        self._state = None
        for request in state.requests if state is not None else ():
            if not request.answer.cancel():
                request.answer.exception()

    def close(self) -> None:
        """End the worker; a later step begins it, and plans, anew."""
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
            if state.quiet_steps <= 0 or begins.any():
                switched = self._update(state, tensordict, begins)
        if switched is not None:
            state.quiet_steps = self._steps_to_next_request(state)
        state.quiet_steps -= 1
        action = state.chunks.pop()
        will_ask = self._is_due(state, state.newest_positions())
        return self._write(tensordict, action, switched, state.chunks.outputs, will_ask)

    def _first_state(self, tensordict: TensorDictBase, begins: Tensor) -> AsyncState:
        request = self._take_off(tensordict, begins, step=0)
        chunk, outputs, serial = self._answer_of(request)
        if chunk.shape[-2] <= self.request_at:
            raise ExecutionError(
                f"AsyncExecutor: expected chunks of more than request_at="
                f"{self.request_at} actions at {self.chunk_key!r}, got "
                f"{chunk.shape[-2]}: it would ask about the same observation again. No "
                "action was sent."
            )
        outputs[OBSERVATION_AGE_KEY] = torch.zeros_like(begins.unsqueeze(-1)).long()
        return AsyncState(StaggeredChunks((chunk, outputs, serial)))

    def _update(
        self, state: AsyncState, tensordict: TensorDictBase, begins: Tensor
    ) -> Tensor:
        """Take answers, ask, and return the rows that begin a new chunk."""
        state.drop(begins)
        switched = begins.clone()
        for request in list(state.requests):
            if self.worker.is_ready(request.answer, state.step):
                switched |= self._land(state, request, request.rows)
        asked = begins | self._is_due(state, state.chunks.positions) & ~state.is_asked
        if asked.any():
            request = self._take_off(tensordict, asked, state.step)
            state.add(request)
            self._land(state, request, begins)  # nothing else could be executed
            if self.worker.is_ready(request.answer, state.step):
                switched |= self._land(state, request, request.rows)
        late = state.chunks.positions >= state.chunks.chunk_size
        return switched | self._meet_late(state, late) if late.any() else switched

    def _meet_late(self, state: AsyncState, late: Tensor) -> Tensor:
        """Do something for rows without an action; return those that begin a chunk."""
        if self.when_late == "hold":
            self.holds += int(late.sum())
            return torch.zeros_like(late)
        if self.when_late == "raise":
            rows = late.reshape(-1).nonzero().flatten().tolist()
            self._state = None
            raise ExecutionError(
                f"AsyncExecutor: expected an action for rows {rows}, got none: the "
                f"policy has not answered within request_at={self.request_at} steps. "
                "Ask earlier, or choose when_late='hold'. No action was sent; the last "
                "one may still be in execution."
            )
        self.waits += 1
        for request in list(state.requests):
            self._land(state, request, request.rows & late)
        return late

    def _take_off(
        self, tensordict: TensorDictBase, rows: Tensor, step: int
    ) -> InFlightRequest:
        """Give the worker a copy of what some rows observe now."""
        everyone = bool(rows.all())
        asked = self._inputs(tensordict, None if everyone else rows)
        if everyone:
            asked = asked.clone()
        job = partial(_run, self.policy, asked, CallersModes())
        answer = self.worker.submit(job, step)
        return InFlightRequest(
            rows, None if everyone else rows, asked.batch_size, step, answer
        )

    def _land(
        self, state: AsyncState, request: InFlightRequest, rows: Tensor
    ) -> Tensor:
        """Let some of a request's rows execute its answer; return them."""
        if rows.any():
            position, size = state.step - request.step, state.chunks.chunk_size
            chunk, outputs, serial = rows_of(
                self._answer_of(request),
                rows if request.shown is None else rows[request.shown],
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
            state.chunks.replace(rows, (chunk, outputs, serial), position)
        state.remove(request, rows)
        return rows

    def _answer_of(self, request: InFlightRequest) -> Answer:
        """Return a request's answer; wait for it if it is not there."""
        if request.read is None:
            try:
                answer = request.answer.result()
            except Exception as error:
                self._state = None
                raise ExecutionError(
                    f"AsyncExecutor: expected {type(self.policy).__name__} to answer "
                    f"about an observation in its worker, got {type(error).__name__}: "
                    f"{error}. The next step plans afresh. No action was sent."
                ) from error
            request.read = self._read_answer(answer, request.batch_size)
        return request.read

    def _is_due(self, state: AsyncState, positions: Tensor) -> Tensor:
        return state.chunks.chunk_size - positions <= self.request_at

    def _steps_to_next_request(self, state: AsyncState) -> int:
        """Return how many steps nothing but a reset can happen on."""
        if state.requests:
            return 0
        position = int(state.chunks.positions.max())
        return state.chunks.chunk_size - self.request_at - position

    def extra_repr(self) -> str:
        """Show when the policy is asked, where it runs, and how often that cost."""
        return (
            f"request_at={self.request_at}, worker={type(self.worker).__name__}, "
            f"when_late={self.when_late!r}, waits={self.waits}, holds={self.holds}"
        )


def _run(
    actor: TensorDictModuleBase, asked: TensorDictBase, modes: CallersModes
) -> TensorDictBase:
    with modes:
        return actor(asked)
