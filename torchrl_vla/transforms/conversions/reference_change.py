"""Actions measured from a state or the previous command, and absolute ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrl_vla.schema import PREVIOUS_ACTION_KEY, STATE_KEY, MissingKeyError


@dataclass(frozen=True)
class ActionBase:
    """What actions are measured from.

    Args:
        state: ``[*B, A]``, where the action's dimensions are in the state.
        previous: ``[*B, A]``, the absolute command before the chunk.
    """

    state: Tensor | None = None
    previous: Tensor | None = None

    def map(self, convert: Callable[[Tensor], Tensor]) -> ActionBase:
        """Return the same in another convention."""
        given = (self.state, self.previous)
        return ActionBase(*(None if v is None else convert(v) for v in given))


class ReferenceChange(nn.Module):
    """Make chunks absolute, or measure them from a state or the command before.

    ``relative`` dimensions are measured from the state seen when the chunk was made,
    ``delta`` dimensions from the command before. All others pass through.

    Args:
        relative: ``A`` flags, True = relative.
        delta: ``A`` flags, True = delta; no dimension is both.

    Examples:
        >>> change = ReferenceChange([True, False], [False, True])
        >>> chunk = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
        >>> base = ActionBase(torch.tensor([10.0, 0.0]), torch.tensor([0.0, 5.0]))
        >>> absolute = change.to_absolute(chunk, base)
        >>> absolute
        tensor([[11.,  6.],
                [12.,  7.]])
        >>> change.from_absolute(absolute, base)
        tensor([[1., 1.],
                [2., 1.]])
    """

    relative: Tensor
    delta: Tensor

    def __init__(self, relative: Sequence[bool], delta: Sequence[bool]) -> None:
        super().__init__()
        self.needs_state = any(relative)
        self.needs_previous = any(delta)
        for name, flags in (("relative", relative), ("delta", delta)):
            value = torch.tensor(list(flags), dtype=torch.bool)
            self.register_buffer(name, value, persistent=False)

    def to_absolute(
        self, chunk: Tensor, base: ActionBase, is_pad: Tensor | None = None
    ) -> Tensor:
        """Return absolute targets.

        Args:
            chunk: ``[*B, H, A]``.
            base: what the actions are measured from.
            is_pad: bool ``[*B, H]``, True = padded: those deltas count as 0.

        Raises:
            MissingKeyError: what the actions are measured from is None.
        """
        if self.needs_previous:
            steps = chunk.double()
            if is_pad is not None:
                steps = steps.masked_fill(is_pad.unsqueeze(-1), 0.0)
            summed = _known(base.previous, PREVIOUS_ACTION_KEY) + steps.cumsum(-2)
            chunk = torch.where(self.delta, summed.to(chunk.dtype), chunk)
        if self.needs_state:
            moved = (chunk.double() + _known(base.state, STATE_KEY)).to(chunk.dtype)
            chunk = torch.where(self.relative, moved, chunk)
        return chunk

    def from_absolute(
        self, chunk: Tensor, base: ActionBase, is_pad: Tensor | None = None
    ) -> Tensor:
        """Undo :meth:`to_absolute`; padded deltas are 0."""
        if self.needs_previous:
            first = _known(base.previous, PREVIOUS_ACTION_KEY).expand_as(
                chunk[..., :1, :]
            )
            before = torch.cat([first, chunk[..., :-1, :].double()], -2)
            steps = chunk.double()
            if is_pad is not None:
                after_pad = is_pad.roll(1, -1).unsqueeze(-1)
                before = torch.where(after_pad, first, before)
                steps = torch.where(is_pad.unsqueeze(-1), before, steps)
            chunk = torch.where(self.delta, (steps - before).to(chunk.dtype), chunk)
        if self.needs_state:
            moved = (chunk.double() - _known(base.state, STATE_KEY)).to(chunk.dtype)
            chunk = torch.where(self.relative, moved, chunk)
        return chunk


def _known(base: Tensor | None, key: object) -> Tensor:
    if base is None:
        raise MissingKeyError(
            f"ReferenceChange: expected what the actions are measured from at {key!r}, "
            "got nothing. Sample it with the actions; in an environment, append "
            "PreviousAction(env.metadata) for the previous command."
        )
    return base.double().unsqueeze(-2)
