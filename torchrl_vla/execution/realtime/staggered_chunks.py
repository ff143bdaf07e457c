"""Buffer of whole chunks, each environment at a position of its own."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from torchrl_vla.execution.chunk_cache import Outputs

#: What a policy wrote for some environments: chunks ``[N, H, A]``, the other outputs,
#: and the number of the decision, for all of them or ``[N, 1]``.
Answer: TypeAlias = tuple[Tensor, Outputs, "int | Tensor"]


class StaggeredChunks:
    """Hold whole chunks and a position in each.

    Executors that enter a chunk in its middle need all of it, not only the next
    actions. While all environments are at the same position, as when they begin
    together, serving is a view; else it is one ``gather``. What was handed out is never
    written to. (:class:`ChunkCache` holds the next actions only, at one cursor.)

    Args:
        answer: chunks ``[*B, H, A]``, outputs and number of a decision for all.
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
        self._together: int | None = position  # None: they differ
        self._positions = torch.full(self.batch_size, position, device=device)

    @property
    def positions(self) -> Tensor:
        """The position of every next action, int64 ``[*B]``."""
        if self._together is None:
            return self._positions
        return torch.full_like(self._positions, self._together)

    def pop(self) -> Tensor:
        """Return every next action ``[*B, A]``; past the end it is the last."""
        last = self.chunk_size - 1
        if self._together is not None:
            action = self.actions.select(-2, min(self._together, last))
            self._together += 1
            return action
        index = self._positions.clamp(max=last).unsqueeze(-1).unsqueeze(-1)
        index = index.expand(*self.batch_size, 1, self.actions.shape[-1])
        self._positions = self._positions + 1
        return self.actions.gather(-2, index).squeeze(-2)

    def take(self, envs: Tensor) -> Answer:
        """Return what is held where ``envs`` (bool ``[*B]``) is True."""
        outputs = {key: value[envs] for key, value in self.outputs.items()}
        return self.actions[envs], outputs, self.serials[envs]

    def replace(self, envs: Tensor, answer: Answer, position: int | Tensor) -> None:
        """Put ``N`` new chunks where ``envs`` (bool ``[*B]``) is True.

        Args:
            envs: ``N`` of them are True.
            answer: for these environments, in their order.
            position: of their next actions, for all of them or ``[N]``.
        """
        actions, outputs, serials = answer
        self._positions = self.positions.clone()
        self._positions[envs] = position
        self._together = None
        first = int(self._positions.reshape(-1)[0])
        if (self._positions == first).all():
            self._together = first
        self.actions = self.actions.clone()
        self.actions[envs] = actions.to(self.actions.dtype)
        self.serials = self.serials.clone()
        self.serials[envs] = serials
        for key, value in outputs.items():
            merged = self.outputs[key].clone()
            merged[envs] = value
            self.outputs[key] = merged


def select_envs(answer: Answer, envs: Tensor) -> Answer:
    """Return the part of an answer where ``envs`` (bool ``[N]``) is True."""
    actions, outputs, serials = answer
    if isinstance(serials, Tensor):
        serials = serials[envs]
    return actions[envs], {key: value[envs] for key, value in outputs.items()}, serials
