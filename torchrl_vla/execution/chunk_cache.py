"""What an executor remembers between two steps."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import (
    NestedKey,
    NonTensorStack,
    TensorDict,
    TensorDictBase,
    is_leaf_nontensor,
    is_non_tensor,
)
from torch import Tensor


class ChunkCache:
    """Hold the actions still to be executed, aligned so that one cursor serves all.

    Environments that re-plan at different times are at different positions of their
    chunks. Rather than keep a position per environment and gather at every step, a
    partial re-plan shifts the rows that go on so that every row's next action is at
    the same cursor: serving is one ``select`` whatever has happened before. The
    price, one copy of ``[*B, interval, A]``, is paid only on partial re-plans.

    Args:
        actions: the first ``interval`` actions of the chunks, ``[*B, interval, A]``.
        outputs: what else the actor wrote; each value's batch is ``[*B]``.
        serial: number of the decision, unique in this process.
    """

    def __init__(
        self, actions: Tensor, outputs: dict[NestedKey, Any], serial: int
    ) -> None:
        self.batch_size = actions.shape[:-2]
        self.interval = actions.shape[-2]
        self.outputs = outputs
        self.serials = torch.full((*self.batch_size, 1), serial, device=actions.device)
        self._actions = actions
        self._cursor = 0
        self._until_due = self.interval
        self._remaining: Tensor | None = None  # None: the same for every row
        self.waiting: Tensor | None = None  # None: no row is
        self._last: Tensor | None = None

    @property
    def any_exhausted(self) -> bool:
        """True when at least one row has no action left."""
        return self._cursor == self._until_due

    def exhausted(self) -> Tensor | None:
        """Return the rows without an action left, bool ``[*B]``; None means all."""
        if self._remaining is None:
            return None
        return self._remaining == self._cursor

    def is_last(self) -> Tensor:
        """Return the rows whose last action was popped, bool ``[*B]``."""
        if self._remaining is None:
            shape, device = self.batch_size, self.serials.device
            return torch.full(shape, self.any_exhausted, device=device)
        return self._remaining == self._cursor

    def pop(self) -> Tensor:
        """Return every row's next action, ``[*B, A]``; of those that wait the last."""
        action = self._actions.select(-2, self._cursor)
        self._cursor += 1
        if self.waiting is not None and self._last is not None:
            action = torch.where(self.waiting.unsqueeze(-1), self._last, action)
        self._last = action
        return action

    def wait(self, rows: Tensor) -> bool:
        """Let rows (bool ``[*B]``) wait for a new cache; return whether all do."""
        self.waiting = rows.clone() if self.waiting is None else self.waiting | rows
        return bool(self.waiting.all())

    def replace_rows(
        self, rows: Tensor, actions: Tensor, outputs: dict[NestedKey, Any], serial: int
    ) -> None:
        """Put new chunks in the rows where ``rows`` (bool ``[*B]``) is True.

        Never writes into a tensor that was handed out: rollouts hold those.
        """
        if self._remaining is None:
            self._remaining = torch.full_like(rows, self.interval, dtype=torch.int64)
        self._remaining = self._remaining - self._cursor
        self._remaining[rows] = self.interval
        self._until_due = int(self._remaining.min())
        self._actions = self._actions.roll(-self._cursor, -2)
        self._actions[rows] = actions.to(self._actions.dtype)
        self._cursor = 0
        self.serials = self.serials.clone()
        self.serials[rows] = serial
        for key, value in outputs.items():
            merged = self.outputs[key].clone()
            merged[rows] = value
            self.outputs[key] = merged


def take_rows(tensordict: TensorDictBase, rows: Tensor) -> TensorDict:
    """Gather the rows where ``rows`` (bool ``[*B]``) is True into a batch ``[N]``.

    ``tensordict[rows]`` does the same, but indexing uint8 images with a mask costs
    twenty times ``index_select``, and text several times a list.
    """
    index = rows.reshape(-1).nonzero().squeeze(-1)
    out = TensorDict({}, [len(index)], device=tensordict.device)
    flat = tensordict.reshape(-1)
    for key, value in flat.items(True, True, is_leaf=is_leaf_nontensor):
        if isinstance(value, NonTensorStack):
            taken = NonTensorStack(*[value[i] for i in index.tolist()])
        elif is_non_tensor(value):
            taken = value[index]
        else:
            taken = value.index_select(0, index)
        out.set(key, taken)
    return out
