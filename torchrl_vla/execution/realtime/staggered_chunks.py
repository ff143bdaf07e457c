"""Chunks in execution, every environment at its own position of its own."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor

#: What a policy said about some rows: chunks ``[N, H, A]``, the other outputs, and the
#: number of the decision, for all rows or ``[N, 1]``.
Answer = tuple[Tensor, dict[NestedKey, Any], "int | Tensor"]


class StaggeredChunks:
    """Hold whole chunks and a position in each.

    Executors that enter a chunk in its middle need all of it, not only the next
    actions. While every row is at the same position, as in environments that begin
    together, serving is a view; else it is one ``gather``. Nothing that was handed out
    is ever written to.

    Args:
        answer: chunks ``[*B, H, A]``, outputs and number of a decision about all rows.
        position: of the first action to be executed.

    Examples:
        >>> import torch
        >>> chunks = torch.arange(6.0).view(2, 3, 1)
        >>> held = StaggeredChunks((chunks, {}, 1))
        >>> held.pop().flatten()
        tensor([0., 3.])
        >>> first = torch.tensor([True, False])
        >>> held.replace(first, (torch.full((1, 3, 1), 9.0), {}, 2), position=2)
        >>> held.positions, held.pop().flatten(), held.serials.flatten()
        (tensor([2, 1]), tensor([9., 4.]), tensor([2, 1]))
    """

    def __init__(self, answer: Answer, position: int = 0) -> None:
        actions, outputs, serials = answer
        self.actions = actions
        self.outputs = outputs
        self.batch_size = actions.shape[:-2]
        self.chunk_size = actions.shape[-2]
        shape, device = (*self.batch_size, 1), actions.device
        if isinstance(serials, Tensor):
            self.serials = serials.reshape(shape)
        else:
            self.serials = torch.full(shape, serials, device=device)
        self._together: int | None = position  # None: rows differ
        self._positions = torch.full(self.batch_size, position, device=device)

    @property
    def positions(self) -> Tensor:
        """The position of every row's next action, int64 ``[*B]``."""
        if self._together is None:
            return self._positions
        return torch.full_like(self._positions, self._together)

    def pop(self) -> Tensor:
        """Return every row's next action ``[*B, A]``; past the end it is the last."""
        last = self.chunk_size - 1
        if self._together is not None:
            action = self.actions.select(-2, min(self._together, last))
            self._together += 1
            return action
        index = self._positions.clamp(max=last).unsqueeze(-1).unsqueeze(-1)
        index = index.expand(*self.batch_size, 1, self.actions.shape[-1])
        self._positions = self._positions + 1
        return self.actions.gather(-2, index).squeeze(-2)

    def take(self, rows: Tensor) -> Answer:
        """Return what is held for the rows where ``rows`` (bool ``[*B]``) is True."""
        outputs = {key: value[rows] for key, value in self.outputs.items()}
        return self.actions[rows], outputs, self.serials[rows]

    def replace(self, rows: Tensor, answer: Answer, position: int | Tensor) -> None:
        """Put ``N`` new chunks in the rows where ``rows`` (bool ``[*B]``) is True.

        Args:
            rows: ``N`` of them are True.
            answer: about these rows, in their order.
            position: of their next actions, for all of them or ``[N]``.
        """
        actions, outputs, serials = answer
        self._positions = self.positions.clone()
        self._positions[rows] = position
        self._together = None
        first = int(self._positions.reshape(-1)[0])
        if (self._positions == first).all():
            self._together = first
        self.actions = self.actions.clone()
        self.actions[rows] = actions.to(self.actions.dtype)
        self.serials = self.serials.clone()
        self.serials[rows] = serials
        for key, value in outputs.items():
            merged = self.outputs[key].clone()
            merged[rows] = value
            self.outputs[key] = merged


def rows_of(answer: Answer, rows: Tensor) -> Answer:
    """Return the rows of an answer where ``rows`` (bool ``[N]``) is True."""
    actions, outputs, serials = answer
    if isinstance(serials, Tensor):
        serials = serials[rows]
    return actions[rows], {key: value[rows] for key, value in outputs.items()}, serials
