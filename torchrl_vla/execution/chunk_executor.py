"""What every executor of action chunks has in common."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution.chunk_cache import take_rows
from torchrl_vla.execution.executor import Executor
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IMAGE_IS_STALE_KEY,
    IMAGE_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    NOISE_SEED_KEY,
    OBSERVATION_NEEDED_KEY,
    ExecutionError,
    MissingKeyError,
)

_serials = itertools.count(1)


class ChunkExecutor(Executor):
    """Stand between a policy that writes chunks and a robot that takes one action.

    The members differ in when they ask the policy and in how its chunks become
    actions; what they share is here: what a policy's answer must look like, and that
    a rollout holds what the policy said about the chunk *in execution*. A member
    implements :meth:`_serve`, with :meth:`_ask` and :meth:`_write`.

    **Reads** the actor's ``in_keys`` and what :class:`Executor` reads.

    **Writes** what :class:`Executor` writes, and every other out_key of the actor.

    Args:
        actor: policy that writes a chunk ``[*B, H, A]``.

    Keyword Args:
        chunk_key: the actor's key of the chunk; needed when its out_keys contain both
            or neither of ``"action_chunk"`` and ``action_key``.
        action_key: where the single action is written.
        init_key: where the first step of an episode is marked.
        decision_key: where the decision mask is written.
        decision_index_key: where the decision's number is written.

    Raises:
        ValueError: the chunk key cannot be told from the actor's out_keys.
        MissingKeyError: the actor did not write one of its out_keys, and as
            :class:`Executor`.
        ExecutionError: the chunk is not ``[*B, H, A]``; the policy would look at a
            image that an environment drawing on demand did not draw; and as
            :class:`Executor`.
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        *,
        chunk_key: NestedKey | None = None,
        action_key: NestedKey = ACTION_KEY,
        init_key: NestedKey = IS_INIT_KEY,
        decision_key: NestedKey = IS_DECISION_KEY,
        decision_index_key: NestedKey = DECISION_INDEX_KEY,
    ) -> None:
        super().__init__(
            action_key=action_key,
            init_key=init_key,
            decision_key=decision_key,
            decision_index_key=decision_index_key,
        )
        self.policy = actor
        self._looks = any(
            unravel_key(key)[: len(IMAGE_KEY)] == IMAGE_KEY for key in actor.in_keys
        )
        self.chunk_key = self._find_chunk_key(actor, chunk_key)
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
            OBSERVATION_NEEDED_KEY,
            *self._output_keys,
        ]

    def _ask(
        self, tensordict: TensorDictBase, rows: Tensor | None
    ) -> tuple[Tensor, dict[NestedKey, Any], int]:
        """Ask the actor about some rows (bool ``[*B]``); None asks about all.

        Returns the chunks ``[*B, H, A]``, or ``[N, H, A]`` of the ``N`` rows, the
        actor's other outputs, and the decision's number.
        """
        asked = self._inputs(tensordict, rows)
        batch_size = asked.batch_size
        return self._read_answer(self.policy(asked), batch_size)

    def _inputs(
        self, tensordict: TensorDictBase, rows: Tensor | None
    ) -> TensorDictBase:
        """Return what the actor is shown, ``[*B]`` or ``[N]``, apart from the data."""
        self._check_images(tensordict, rows)
        optional = getattr(self.policy, "optional_in_keys", ())
        keys = [*self.policy.in_keys, *optional, NOISE_SEED_KEY]
        asked = tensordict.select(*keys, strict=False)
        return asked if rows is None else take_rows(asked, rows)

    def _check_images(self, tensordict: TensorDictBase, rows: Tensor | None) -> None:
        """Refuse to plan from images of an earlier step."""
        is_stale = tensordict.get(IMAGE_IS_STALE_KEY, None)
        if is_stale is None or not self._looks or torch.compiler.is_compiling():
            return
        is_stale = is_stale.squeeze(-1)
        if rows is not None:
            is_stale = is_stale & rows
        if is_stale.any():
            raise ExecutionError(
                f"{self._name}: expected images of this step where it asks "
                f"{type(self.policy).__name__}, got {IMAGE_IS_STALE_KEY!r} True in "
                f"{int(is_stale.sum())} rows. The environment draws on demand and was "
                "told that nobody would look: reset it together with the executor, "
                f"hand it the executor's {OBSERVATION_NEEDED_KEY!r}, or make it with "
                "render_on_demand=False."
            )

    def _read_answer(
        self, answer: TensorDictBase, batch_size: torch.Size
    ) -> tuple[Tensor, dict[NestedKey, Any], int]:
        """Return chunks, the other outputs and a new decision's number."""
        chunk = self._read(answer, self.chunk_key)
        self._check_chunk(chunk, batch_size)
        outputs = {key: self._read(answer, key) for key in self._output_keys}
        return chunk, outputs, next(_serials)

    def _read(self, answer: TensorDictBase, key: NestedKey) -> Any:
        value = answer.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"{self._name}: expected {type(self.policy).__name__} to write "
                f"{key!r}, one of its out_keys, got "
                f"{sorted(map(str, answer.keys(True, True)))}. No action was sent."
            )
        return value

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        if chunk.ndim != len(batch_size) + 2 or chunk.shape[:-2] != batch_size:
            raise ExecutionError(
                f"{self._name}: expected a chunk [*B, H, A] with *B = "
                f"{list(batch_size)} at {self.chunk_key!r}, got {list(chunk.shape)}. "
                "No action was sent."
            )
        if chunk.shape[-2] == 0:
            raise ExecutionError(
                f"{self._name}: expected a chunk of at least one action at "
                f"{self.chunk_key!r}, got 0. No action was sent."
            )

    def _find_chunk_key(
        self, actor: TensorDictModuleBase, chunk_key: NestedKey | None
    ) -> NestedKey:
        out_keys = [unravel_key(key) for key in actor.out_keys]
        if chunk_key is not None:
            found = [key for key in out_keys if key == unravel_key(chunk_key)]
            wanted = f"chunk_key={chunk_key!r}"
        else:
            likely = (ACTION_CHUNK_KEY, self.action_key)
            found = [key for key in out_keys if key in likely]
            wanted = f"exactly one of {ACTION_CHUNK_KEY!r} and {self.action_key!r}"
        if len(found) != 1:
            raise ValueError(
                f"{self._name}: expected {wanted} among the out_keys of "
                f"{type(actor).__name__}, got {out_keys}. Name the key that holds the "
                "chunk [*B, H, A] with chunk_key=..."
            )
        return found[0]

    def extra_repr(self) -> str:
        """Show where the chunk and the action are."""
        return f"chunk_key={self.chunk_key!r}, action_key={self.action_key!r}"
