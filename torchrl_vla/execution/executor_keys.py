"""Record of the keys that an executor reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, unravel_key

from torchrl_vla.schema import (
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
)


@dataclass(frozen=True)
class ExecutorKeys:
    """Name the entries that an executor reads and writes.

    Args:
        chunk: the policy's chunk ``[*B, H, A]``; None = ``"action_chunk"`` or
            ``action``, whichever of them the policy writes.
        action: the single action ``[*B, A]``.
        is_init: bool ``[*B, 1]``, True = first step of an episode.
        is_decision: bool ``[*B, 1]``, True = a new chunk begins.
        decision_index: int64 ``[*B, 1]``, number of the decision in execution.

    Examples:
        >>> ExecutorKeys(chunk=("plan", "chunk")).chunk
        ('plan', 'chunk')
    """

    chunk: NestedKey | None = None
    action: NestedKey = ACTION_KEY
    is_init: NestedKey = IS_INIT_KEY
    is_decision: NestedKey = IS_DECISION_KEY
    decision_index: NestedKey = DECISION_INDEX_KEY

    def __post_init__(self) -> None:
        for name, key in vars(self).copy().items():
            if key is not None:
                object.__setattr__(self, name, unravel_key(key))
