"""Cache of the actions to be executed, with one cursor for all environments."""

from __future__ import annotations

from typing import Any, TypeAlias

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

#: What a policy wrote beside the chunk: tensors, or non-tensor entries such as text.
Outputs: TypeAlias = dict[NestedKey, Any]


class ChunkCache:
    """Hold the actions to be executed, aligned so that one cursor serves all.

    Environments that plan at different times are at different positions of their
    chunks. Rather than keep a position per environment and gather at every step, a
    partial plan shifts the other environments' actions so that every next action is at
    the same cursor: serving is one ``select``. The price, one copy of
    ``[*B, interval, A]``, is paid only on partial plans.

    Args:
        actions: the first ``interval`` actions of the chunks, ``[*B, interval, A]``.
        outputs: the policy's other outputs; each value's batch is ``[*B]``.
        serial: number of the decision, unique in this process.
    """

    def __init__(self, actions: Tensor, outputs: Outputs, serial: int) -> None:
        self.batch_size = actions.shape[:-2]
        self.interval = actions.shape[-2]
        self.outputs = outputs
        self.serials = torch.full((*self.batch_size, 1), serial, device=actions.device)
        self._actions = actions
        self._cursor = 0
        self._until_due = self.interval
        self._remaining: Tensor | None = None  # None: the same for all
        self.waiting: Tensor | None = None  # None: none waits
        self._last: Tensor | None = None

    @property
    def any_exhausted(self) -> bool:
        """True when at least one environment has no action left."""
        return self._cursor == self._until_due

    def exhausted(self) -> Tensor | None:
        """Return the environments without an action left, bool ``[*B]``; None = all."""
        if self._remaining is None:
            return None
        return self._remaining == self._cursor

    def is_last(self) -> Tensor:
        """Return the environments whose last action was popped, bool ``[*B]``."""
        if self._remaining is None:
            shape, device = self.batch_size, self.serials.device
            return torch.full(shape, self.any_exhausted, device=device)
        return self._remaining == self._cursor

    def pop(self) -> Tensor:
        """Return every next action ``[*B, A]``; of those that wait the last one."""
        action = self._actions.select(-2, self._cursor)
        self._cursor += 1
        if self.waiting is not None and self._last is not None:
            action = torch.where(self.waiting.unsqueeze(-1), self._last, action)
        self._last = action
        return action

    def wait(self, envs: Tensor) -> bool:
        """Let some environments (bool ``[*B]``) wait; return whether all do."""
        self.waiting = envs.clone() if self.waiting is None else self.waiting | envs
        return bool(self.waiting.all())

    def replace(
        self, envs: Tensor, actions: Tensor, outputs: Outputs, serial: int
    ) -> None:
        """Put new chunks where ``envs`` (bool ``[*B]``) is True.

        Never writes into a tensor that was handed out: rollouts hold those.
        """
        if self._remaining is None:
            self._remaining = torch.full_like(envs, self.interval, dtype=torch.int64)
        self._remaining = self._remaining - self._cursor
        self._remaining[envs] = self.interval
        self._until_due = int(self._remaining.min())
        self._actions = self._actions.roll(-self._cursor, -2)
        self._actions[envs] = actions.to(self._actions.dtype)
        self._cursor = 0
        self.serials = self.serials.clone()
        self.serials[envs] = serial
        for key, value in outputs.items():
            merged = self.outputs[key].clone()
            merged[envs] = value
            self.outputs[key] = merged


def take_envs(tensordict: TensorDictBase, envs: Tensor) -> TensorDict:
    """Gather the entries where ``envs`` (bool ``[*B]``) is True into a batch ``[N]``.

    ``tensordict[envs]`` does the same, but indexing uint8 images with a mask costs
    twenty times ``index_select``, and text several times a list.
    """
    index = envs.reshape(-1).nonzero().squeeze(-1)
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
