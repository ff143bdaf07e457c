"""Execute action chunks one action a step, from inside the policy."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.chunk_cache import ChunkCache, take_rows
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    ExecutionError,
    MissingKeyError,
    check_positive_int,
)

_serials = itertools.count(1)


class MultiStepActorWrapper(TensorDictModuleBase):
    """Serve a chunk policy's actions one a step and skip the policy meanwhile.

    A policy that predicts ``H`` actions need not run at each of the next ``H`` steps.
    The executor asks it only when an environment has begun an episode or has used up
    its actions, for those environments alone, and keeps the chunk to itself: the
    rollout holds the executed action and what the policy said about the chunk
    (tokens, log-probabilities), not ``[H, A]`` at every step. The surprise: what it
    writes on a step belongs to the chunk *in execution*, so tokens and log-probs
    repeat until the next decision; train on the rows where ``is_decision`` is True
    (:func:`select_decisions`).

    One executor serves one environment, every step of an episode through it. When a
    tensordict shows that another environment used it in between, it raises rather
    than execute a chunk made for something else; when it carries an action that this
    executor did not choose (a collector's random frames), it plans afresh. Copies
    start empty.

    **Reads** the actor's ``in_keys``; ``is_init`` bool ``[*B, 1]``, True = first step
    of an episode (TorchRL's ``InitTracker`` writes it); ``decision_index`` as it was
    written on the step before, and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` bool ``[*B, 1]``, True = the
    policy was asked on this step; ``decision_index`` int64 ``[*B, 1]``, which decision
    is in execution, unique in the process; every other out_key of the actor.

    Args:
        actor: policy that writes a chunk ``[*B, H, A]``.
        n_steps: the ``H`` to expect; only a check, ``H`` comes from the chunk.

    Keyword Args:
        replan_interval: actions to execute before asking again, ``1 .. H``. None is
            open loop (all ``H``), 1 is closed loop.
        chunk_key: the actor's key of the chunk; needed when its out_keys contain both
            or neither of ``"action_chunk"`` and ``action_key``.
        action_key: where the single action is written.
        init_key: where the first step of an episode is marked.
        decision_key: where the decision mask is written.
        decision_index_key: where the decision's number is written.

    Raises:
        ValueError: the interval is not in ``1 .. n_steps``, or the chunk key cannot
            be told from the actor's out_keys.
        MissingKeyError: the tensordict has no ``is_init``.
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
        chunk_key: NestedKey | None = None,
        action_key: NestedKey = ACTION_KEY,
        init_key: NestedKey = IS_INIT_KEY,
        decision_key: NestedKey = IS_DECISION_KEY,
        decision_index_key: NestedKey = DECISION_INDEX_KEY,
    ) -> None:
        super().__init__()
        for name, value in (("n_steps", n_steps), ("replan_interval", replan_interval)):
            if value is not None:
                check_positive_int("MultiStepActorWrapper", name, value)
        if n_steps is not None and replan_interval is not None:
            _check_interval(replan_interval, n_steps, ValueError)
        self.actor = actor
        self.n_steps = n_steps
        self.replan_interval = replan_interval
        self.action_key = unravel_key(action_key)
        self.init_key = unravel_key(init_key)
        self.decision_key = unravel_key(decision_key)
        self.decision_index_key = unravel_key(decision_index_key)
        self.chunk_key = _find_chunk_key(actor, chunk_key, self.action_key)
        self._output_keys = [
            key
            for key in map(unravel_key, actor.out_keys)
            if key not in (self.chunk_key, self.action_key)
        ]
        self.in_keys = list(dict.fromkeys([*actor.in_keys, self.init_key]))
        self.out_keys = [
            self.action_key,
            self.decision_key,
            self.decision_index_key,
            *self._output_keys,
        ]
        self._cache: ChunkCache | None = None

    def reset(self) -> None:
        """Forget every chunk: the next step asks the policy for all environments."""
        self._cache = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next action, asking the actor where none is left."""
        carried = tensordict.get(self.decision_index_key, None)
        rows = self._rows_to_plan(tensordict, carried)
        if rows is not None:
            self._plan(tensordict, rows)
        cache = self._cache
        tensordict.set(self.action_key, cache.pop())
        if rows is None:
            asked = torch.zeros_like(cache.serials, dtype=torch.bool)
        else:
            asked = rows.unsqueeze(-1).clone()  # may be a view of is_init
        tensordict.set(self.decision_key, asked)
        if carried is not cache.serials:
            tensordict.set(self.decision_index_key, cache.serials)
        for key, value in cache.outputs.items():
            tensordict.set(key, value)
        return tensordict

    def _rows_to_plan(
        self, tensordict: TensorDictBase, carried: Tensor | None
    ) -> Tensor | None:
        """Return the rows to plan for, bool ``[*B]``; None when there are none."""
        is_init = tensordict.get(self.init_key, None)
        if is_init is None:
            raise MissingKeyError(
                f"MultiStepActorWrapper: expected a bool [*B, 1] at {self.init_key!r}, "
                f"got only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "InitTracker() to the environment: it marks the first step of each "
                "episode. No action was sent."
            )
        batch_size, cache = tensordict.batch_size, self._cache
        if cache is None:
            return torch.ones(batch_size, dtype=torch.bool, device=is_init.device)
        if cache.batch_size != batch_size:
            self._check_new_batch(is_init, batch_size)
            return is_init.reshape(batch_size)
        if carried is None and tensordict.get(self.action_key, None) is not None:
            return torch.ones_like(is_init).reshape(batch_size)  # another one acted
        self._check_same_stream(carried, is_init)
        if cache.any_exhausted:
            started, exhausted = is_init.reshape(batch_size), cache.exhausted()
            if exhausted is None:
                return torch.ones_like(started)
            return exhausted | started
        return is_init.reshape(batch_size) if is_init.any() else None

    def _plan(self, tensordict: TensorDictBase, rows: Tensor) -> None:
        everyone = bool(rows.all())
        asked = tensordict.select(*self.actor.in_keys, strict=False)
        if not everyone:
            asked = take_rows(asked, rows)
        asked_shape = asked.batch_size
        answer = self.actor(asked)
        chunk = self._read(answer, self.chunk_key)
        self._check_chunk(chunk, asked_shape)
        interval = self.replan_interval or chunk.shape[-2]
        actions = chunk[..., :interval, :]
        outputs = {key: self._read(answer, key) for key in self._output_keys}
        if everyone:
            self._cache = ChunkCache(actions, outputs, next(_serials))
        elif interval != self._cache.interval:
            raise ExecutionError(
                f"MultiStepActorWrapper: expected chunks of {self._cache.interval} "
                f"steps at {self.chunk_key!r} as in the plans still in execution, got "
                f"{interval}. Give a fixed replan_interval. No action was sent."
            )
        else:
            self._cache.replace_rows(rows, actions, outputs, next(_serials))

    def _read(self, answer: TensorDictBase, key: NestedKey) -> Any:
        value = answer.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"MultiStepActorWrapper: expected {type(self.actor).__name__} to write "
                f"{key!r}, one of its out_keys, got "
                f"{sorted(map(str, answer.keys(True, True)))}. No action was sent."
            )
        return value

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        if chunk.ndim != len(batch_size) + 2 or chunk.shape[:-2] != batch_size:
            raise ExecutionError(
                "MultiStepActorWrapper: expected a chunk [*B, H, A] with *B = "
                f"{list(batch_size)} at {self.chunk_key!r}, got {list(chunk.shape)}. "
                "No action was sent."
            )
        length = chunk.shape[-2]
        if length == 0 or self.n_steps not in (None, length):
            raise ExecutionError(
                f"MultiStepActorWrapper: expected a chunk of n_steps={self.n_steps} "
                f"actions at {self.chunk_key!r}, got {length}. Leave n_steps out to "
                "take the length from the chunk. No action was sent."
            )
        if self.replan_interval is not None:
            _check_interval(self.replan_interval, length, ExecutionError)

    def _check_new_batch(self, is_init: Tensor, batch_size: torch.Size) -> None:
        if not is_init.all():
            raise ExecutionError(
                "MultiStepActorWrapper: expected batch size "
                f"{list(self._cache.batch_size)}, that of the chunks in execution, got "
                f"{list(batch_size)} in mid-episode. Give each environment its own "
                "MultiStepActorWrapper(actor), or call reset() to plan afresh. No "
                "action was sent."
            )

    def _check_same_stream(self, carried: Tensor | None, is_init: Tensor) -> None:
        ours = self._cache.serials
        if carried is None or carried is ours or torch.equal(carried, ours):
            return
        foreign = (carried != ours) & ~is_init.reshape(ours.shape)
        if foreign.any():
            raise ExecutionError(
                "MultiStepActorWrapper: expected the environment whose decisions "
                f"{ours[foreign].tolist()} are in execution, got one at "
                f"{carried[foreign].tolist()} (key {self.decision_index_key!r}): "
                "another environment used this executor in between. Give each "
                "environment its own MultiStepActorWrapper(actor), or call reset() to "
                "plan afresh. No action was sent."
            )

    def _apply(self, fn: Any, recurse: bool = True) -> MultiStepActorWrapper:
        # The cache is no buffer (its shape is the environment's business), so a move
        # or cast drops it: planning afresh is always right.
        self.reset()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        """Show how often the policy is asked."""
        return (
            f"n_steps={self.n_steps}, replan_interval={self.replan_interval}, "
            f"chunk_key={self.chunk_key!r}, action_key={self.action_key!r}"
        )


def _find_chunk_key(
    actor: TensorDictModuleBase, chunk_key: NestedKey | None, action_key: NestedKey
) -> NestedKey:
    out_keys = [unravel_key(key) for key in actor.out_keys]
    if chunk_key is not None:
        found = [key for key in out_keys if key == unravel_key(chunk_key)]
    else:
        found = [key for key in out_keys if key in (ACTION_CHUNK_KEY, action_key)]
    if len(found) != 1:
        wanted = (
            f"exactly one of {ACTION_CHUNK_KEY!r} and {action_key!r}"
            if chunk_key is None
            else f"chunk_key={chunk_key!r}"
        )
        raise ValueError(
            f"MultiStepActorWrapper: expected {wanted} among the out_keys of "
            f"{type(actor).__name__}, got {out_keys}. Name the key that holds the "
            "chunk [*B, H, A] with chunk_key=..."
        )
    return found[0]


def _check_interval(interval: int, length: int, error: type[Exception]) -> None:
    if interval > length:
        raise error(
            f"MultiStepActorWrapper: expected replan_interval in 1..{length}, the "
            f"chunk's length, got {interval}. A chunk cannot be executed for longer "
            "than it is."
        )
