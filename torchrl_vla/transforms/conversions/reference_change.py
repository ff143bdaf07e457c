"""Actions measured from a state or the previous command, and absolute ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrl_vla.schema import PREVIOUS_ACTION_KEY, STATE_KEY, MissingKeyError
from torchrl_vla.transforms.conversions.feature_map import RotationSlot
from torchrl_vla.transforms.conversions.turned_rotation import TurnedRotation


@dataclass(frozen=True)
class ActionBase:
    """What actions are measured from.

    Args:
        state: ``[*B, A]``, where the action's dimensions are in the state.
        previous: ``[*B, A]``, the absolute command before the chunk.
    """

    state: Tensor | None = None
    previous: Tensor | None = None


class ReferenceChange(nn.Module):
    """Make chunks absolute, or measure them from a state or the command before.

    ``relative`` dimensions are measured from the state seen when the chunk was made,
    ``delta`` dimensions from the command before: numbers are added, and rotations are
    composed. All others pass through.

    Args:
        relative: ``A`` flags, True = relative.
        delta: ``A`` flags, True = delta; no dimension is both, nor of a rotation.
        turned: relative and delta rotations.

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

    def __init__(
        self,
        relative: Sequence[bool],
        delta: Sequence[bool],
        turned: Sequence[TurnedRotation] = (),
    ) -> None:
        super().__init__()
        self.turned = tuple(r for r in turned if r.kind != "absolute")
        kinds = {rotation.kind for rotation in self.turned}
        self._adds_state, self._adds_previous = any(relative), any(delta)
        self.needs_state = self._adds_state or "relative" in kinds
        self.needs_previous = self._adds_previous or "delta" in kinds
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
        for rotation in self.turned:
            start = _start(base, rotation)
            chunk = rotation.to_absolute(chunk, start, is_pad)
        if self._adds_previous:
            steps = chunk.double()
            if is_pad is not None:
                steps = steps.masked_fill(is_pad.unsqueeze(-1), 0.0)
            summed = _previous(base).unsqueeze(-2) + steps.cumsum(-2)
            chunk = torch.where(self.delta, summed.to(chunk.dtype), chunk)
        if self._adds_state:
            moved = (chunk.double() + _state(base).unsqueeze(-2)).to(chunk.dtype)
            chunk = torch.where(self.relative, moved, chunk)
        return chunk

    def map_base(
        self,
        base: ActionBase,
        convert: Callable[[Tensor, Sequence[RotationSlot]], Tensor],
    ) -> ActionBase:
        """Return a base of another convention in that of this change.

        Args:
            base: in the other convention.
            convert: of numbers and of the rotations that are measured from them.
        """
        mapped = []
        for value, kind in ((base.state, "relative"), (base.previous, "delta")):
            slots = [rotation.slot for rotation in self.turned if rotation.kind == kind]
            mapped.append(None if value is None else convert(value, slots))
        return ActionBase(*mapped)

    def from_absolute(
        self, chunk: Tensor, base: ActionBase, is_pad: Tensor | None = None
    ) -> Tensor:
        """Undo :meth:`to_absolute`; padded deltas are 0."""
        for rotation in self.turned:
            start = _start(base, rotation)
            chunk = rotation.from_absolute(chunk, start, is_pad)
        if self._adds_previous:
            first = _previous(base).unsqueeze(-2).expand_as(chunk[..., :1, :])
            before = torch.cat([first, chunk[..., :-1, :].double()], -2)
            steps = chunk.double()
            if is_pad is not None:
                after_pad = is_pad.roll(1, -1).unsqueeze(-1)
                before = torch.where(after_pad, first, before)
                steps = torch.where(is_pad.unsqueeze(-1), before, steps)
            chunk = torch.where(self.delta, (steps - before).to(chunk.dtype), chunk)
        if self._adds_state:
            moved = (chunk.double() - _state(base).unsqueeze(-2)).to(chunk.dtype)
            chunk = torch.where(self.relative, moved, chunk)
        return chunk


def _start(base: ActionBase, rotation: TurnedRotation) -> Tensor:
    return _state(base) if rotation.kind == "relative" else _previous(base)


def _state(base: ActionBase) -> Tensor:
    return _known(base.state, STATE_KEY)


def _previous(base: ActionBase) -> Tensor:
    return _known(base.previous, PREVIOUS_ACTION_KEY)


def _known(base: Tensor | None, key: object) -> Tensor:
    if base is None:
        raise MissingKeyError(
            f"ReferenceChange: expected what the actions are measured from at {key!r}, "
            "got nothing. Sample it with the actions; in an environment, append "
            "PreviousAction(env.metadata) for the previous command."
        )
    return base.double()
