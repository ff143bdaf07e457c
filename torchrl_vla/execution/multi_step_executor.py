"""Execute action chunks one action a step, from inside the policy."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.chunk_cache import ChunkCache
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.executor import flag
from torchrl_vla.schema import (
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    IS_WAITING_KEY,
    ExecutionError,
    check_positive_int,
)


class MultiStepActorWrapper(ChunkExecutor):
    """Serve a chunk policy's actions one a step and skip the policy meanwhile.

    A policy that predicts ``H`` actions need not run at each of the next ``H`` steps.
    The executor asks it only when an environment has begun an episode or has used up
    its actions, for those environments alone, and keeps the chunk to itself: the
    rollout holds the executed action and what the policy said about the chunk
    (tokens, log-probabilities), not ``[H, A]`` at every step. The surprise: what it
    writes on a step belongs to the chunk *in execution*, so tokens and log-probs
    repeat until the next decision; train on the rows where ``is_decision`` is True
    (:func:`select_decisions`).

    Episodes that end at different steps soon make every row ask on its own, nearly
    one policy call a step. With ``align=True`` a row that begins an episode while
    others are inside their chunks waits for them, and all are planned in one call
    every ``replan_interval`` steps. :class:`SkipWaiting` in the environment does not
    step the rows that wait; their ``action`` repeats the one before and is not
    executed. When every row would wait, none does.

    One executor serves one environment (:class:`Executor`); copies start empty.

    **Reads** the actor's ``in_keys``; ``is_init`` bool ``[*B, 1]``, True = first step
    of an episode (TorchRL's ``InitTracker`` writes it); ``decision_index`` as it was
    written on the step before, and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` bool ``[*B, 1]``, True = the
    policy was asked on this step; ``decision_index`` int64 ``[*B, 1]``, which decision
    is in execution, unique in the process; ``observation_needed`` bool ``[*B, 1]``,
    True = the row's actions are used up after this step; with ``align``, ``is_waiting``
    bool ``[*B, 1]``; every other out_key of the actor.

    Args:
        actor: policy that writes a chunk ``[*B, H, A]``.
        n_steps: the ``H`` to expect; only a check, ``H`` comes from the chunk.

    Keyword Args:
        replan_interval: actions to execute before asking again, ``1 .. H``. None is
            open loop (all ``H``), 1 is closed loop.
        align: True = plan for all rows at the same steps.
        chunk_key: the actor's key of the chunk; needed when its out_keys contain both
            or neither of ``"action_chunk"`` and ``action_key``.
        action_key: where the single action is written.
        init_key: where the first step of an episode is marked.
        decision_key: where the decision mask is written.
        decision_index_key: where the decision's number is written.

    Raises:
        ValueError: the interval is not in ``1 .. n_steps``, or the chunk key cannot
            be told from the actor's out_keys.
        MissingKeyError: the tensordict has no ``is_init``, or with ``align`` the
            environment no :class:`SkipWaiting`.
        ExecutionError: the chunk has another shape than ``[*B, H, A]`` with the
            announced ``H``; the batch size changed in mid-episode; the tensordict
            comes from another environment than the cached chunk.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> actor = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.arange(3.0).view(3, 1),
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = MultiStepActorWrapper(actor)
        >>> step = TensorDict(state=torch.zeros(1, 1), is_init=torch.ones(1, 1).bool())
        >>> step.batch_size = [1]
        >>> [executor(step.clone())["action"].item()]
        [0.0]
        >>> step["is_init"] = torch.zeros(1, 1).bool()
        >>> [executor(step.clone())["action"].item() for _ in range(3)]
        [1.0, 2.0, 0.0]
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        n_steps: int | None = None,
        *,
        replan_interval: int | None = None,
        align: bool = False,
        chunk_key: NestedKey | None = None,
        action_key: NestedKey = ACTION_KEY,
        init_key: NestedKey = IS_INIT_KEY,
        decision_key: NestedKey = IS_DECISION_KEY,
        decision_index_key: NestedKey = DECISION_INDEX_KEY,
    ) -> None:
        for name, value in (("n_steps", n_steps), ("replan_interval", replan_interval)):
            if value is not None:
                check_positive_int("MultiStepActorWrapper", name, value)
        if n_steps is not None and replan_interval is not None:
            _check_interval(replan_interval, n_steps, ValueError)
        super().__init__(
            actor,
            chunk_key=chunk_key,
            action_key=action_key,
            init_key=init_key,
            decision_key=decision_key,
            decision_index_key=decision_index_key,
        )
        self.n_steps = n_steps
        self.replan_interval = replan_interval
        self.align = align
        if align:
            self.out_keys = [*self.out_keys, IS_WAITING_KEY]

    @property
    def makes_wait(self) -> bool:
        """True = rows may wait, which takes :class:`SkipWaiting` in the environment."""
        return self.align

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        rows = self._rows_to_plan(begins)
        if rows is not None:
            self._plan(tensordict, rows)
        cache: ChunkCache = self._state
        action = cache.pop()
        if self.align:
            waiting = flag(cache.waiting, cache.serials, default=False)
            tensordict.set(IS_WAITING_KEY, waiting)
        return self._write(tensordict, action, rows, cache.outputs, cache.is_last())

    def _rows_to_plan(self, begins: Tensor) -> Tensor | None:
        """Return the rows to plan for, bool ``[*B]``; None when there are none."""
        cache: ChunkCache | None = self._state
        if cache is None:
            return begins
        if cache.any_exhausted:
            exhausted = cache.exhausted()
            return torch.ones_like(begins) if exhausted is None else exhausted | begins
        if not begins.any():
            return None
        if not self.align:
            return begins
        return torch.ones_like(begins) if cache.wait(begins) else None

    def _plan(self, tensordict: TensorDictBase, rows: Tensor) -> None:
        cache: ChunkCache | None = None if rows.all() else self._state
        chunk, outputs, serial = self._ask(tensordict, None if cache is None else rows)
        interval = self.replan_interval or chunk.shape[-2]
        actions = chunk[..., :interval, :]
        if cache is None:
            self._state = ChunkCache(actions, outputs, serial)
        elif interval != cache.interval:
            raise ExecutionError(
                f"MultiStepActorWrapper: expected chunks of {cache.interval} "
                f"steps at {self.chunk_key!r} as in the plans still in execution, got "
                f"{interval}. Give a fixed replan_interval. No action was sent."
            )
        else:
            cache.replace_rows(rows, actions, outputs, serial)

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        super()._check_chunk(chunk, batch_size)
        length = chunk.shape[-2]
        if self.n_steps not in (None, length):
            raise ExecutionError(
                f"MultiStepActorWrapper: expected a chunk of n_steps={self.n_steps} "
                f"actions at {self.chunk_key!r}, got {length}. Leave n_steps out to "
                "take the length from the chunk. No action was sent."
            )
        if self.replan_interval is not None:
            _check_interval(self.replan_interval, length, ExecutionError)

    def extra_repr(self) -> str:
        """Show how often the policy is asked."""
        return (
            f"n_steps={self.n_steps}, replan_interval={self.replan_interval}, "
            f"align={self.align}, "
            f"chunk_key={self.chunk_key!r}, action_key={self.action_key!r}"
        )


def _check_interval(interval: int, length: int, error: type[Exception]) -> None:
    if interval > length:
        raise error(
            f"MultiStepActorWrapper: expected replan_interval in 1..{length}, the "
            f"chunk's length, got {interval}. A chunk cannot be executed for longer "
            "than it is."
        )
