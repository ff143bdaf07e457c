"""Asynchronous executor: the policy runs in a worker while a chunk is executed."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.realtime.background_executor import BackgroundExecutor
from torchrl_vla.execution.realtime.inference_workers import (
    InferenceWorker,
    ThreadWorker,
)
from torchrl_vla.execution.realtime.lateness import Lateness, Reaction
from torchrl_vla.execution.realtime.overlap_blending import OverlapBlending, Replace
from torchrl_vla.execution.realtime.requests import AsyncState
from torchrl_vla.schema import ExecutionError


class AsyncExecutor(BackgroundExecutor):
    """Call the policy in a worker before the chunk is used up.

    The policy runs on a copy of the present observation while the old chunk is
    executed. When its answer arrives, the actions for the steps that have passed are
    left out, by index and never by the wall clock: step ``t`` executes
    ``chunk[t - t_observed]``. A delay of up to ``request_at`` steps costs no waiting.

    Note:
        Nothing makes the policy's new chunk continue the old one, so the motion may
        jump where they meet. ``overlap`` blends the two where both have an action;
        :class:`RealTimeChunking` prevents the jump, for policies that take a guide. At
        the beginning of an episode there is nothing to execute, and the step waits for
        the answer, as long as ``when_late`` allows.

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
        when_late: what to do on a step for which no action is left, a
            :class:`Lateness` or its reaction alone, such as ``"hold"``.
        overlap: how a new chunk is blended with what is left of the old one.
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: an argument is none of the above.
        ExecutionError: the policy failed in its worker; an answer came after its last
            action; none was left and ``when_late`` stops; and as
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
        when_late: Reaction | Lateness = "wait",
        overlap: OverlapBlending = Replace(),  # noqa: B008 (has no state)
        keys: ExecutorKeys | None = None,
    ) -> None:
        if isinstance(request_at, bool) or not isinstance(request_at, int):
            raise ValueError(
                "AsyncExecutor: expected a number of actions at argument 'request_at', "
                f"got {request_at!r}. Multiply a fraction by the chunk's length."
            )
        if request_at < 0:
            raise ValueError(
                f"AsyncExecutor: expected request_at >= 0, got {request_at}."
            )
        super().__init__(
            policy,
            action_reference=action_reference,
            worker=ThreadWorker() if worker is None else worker,
            when_late=when_late,
            keys=keys,
        )
        self.request_at = request_at
        self.overlap = overlap

    _earlier = "increase request_at"

    def _steps_until_due(self, positions: Tensor, size: int) -> Tensor:
        return size - self.request_at - positions

    def _check_length(self, chunk: Tensor, size: int | None) -> None:
        length = chunk.shape[-2]
        if length <= self.request_at:
            raise ExecutionError(
                f"AsyncExecutor: expected chunks of more than request_at="
                f"{self.request_at} actions at {self.chunk_key!r}, got {length}: it "
                "would plan from the same observation again. No action was sent."
            )
        if size not in (None, length):
            raise ExecutionError(
                f"AsyncExecutor: expected a chunk of {size} actions at "
                f"{self.chunk_key!r} as before, got {length}. No action was sent."
            )

    @property
    def _blends(self) -> bool:
        return self.overlap != Replace()

    def _join(
        self, state: AsyncState, envs: Tensor, chunk: Tensor, position: int | Tensor
    ) -> Tensor:
        """Blend new chunks ``[N, H, A]`` with the rest of those in execution."""
        counts = torch.ones_like(chunk[..., :1], dtype=torch.int64)
        if state.chunks is None:
            state.blended = counts.new_ones(*envs.shape, *counts.shape[-2:])
            return chunk
        assert state.blended is not None
        chunks, size = state.chunks, chunk.shape[-2]
        index = torch.arange(size, device=chunk.device)
        # New action h is due together with the old one at h + shift.
        shift = chunks.positions[envs] - position
        old_index = index + shift.unsqueeze(-1)
        both = (old_index < size) & (old_index >= 0) & ~state.empty[envs].unsqueeze(-1)
        at = old_index.clamp(0, size - 1).unsqueeze(-1)
        old = chunks.actions[envs].gather(-2, at.expand(chunk.shape))
        count = state.blended[envs].gather(-2, at)
        both = both.unsqueeze(-1)
        blended = torch.where(both, self.overlap(old, chunk, count), chunk)
        state.blended = state.blended.clone()
        state.blended[envs] = torch.where(both, count + 1, counts)
        return blended

    def extra_repr(self) -> str:
        """Show when the policy is called, where it runs, and how often it was late."""
        return f"request_at={self.request_at}, {super().extra_repr()}"
