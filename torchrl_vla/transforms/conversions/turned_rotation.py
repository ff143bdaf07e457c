"""Rotations measured from a state or the previous command, and absolute ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_vla.transforms.conversions.feature_map import RotationSlot
from torchrl_vla.transforms.conversions.rotations import (
    from_quaternion,
    to_quaternion,
)

_NO_TURN = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TurnedRotation:
    """A rotation of an action that is composed with what it is measured from.

    Args:
        slot: its dimensions, layout and unit.
        kind: ``"relative"`` or ``"delta"``; ``"absolute"`` passes through.
        frame: ``"world"``: target = step * base; ``"body"``: target = base * step.

    Examples:
        >>> slot = RotationSlot((0, 1, 2), "axis_angle")
        >>> about_z = torch.tensor([0.0, 0.0, 0.5])
        >>> turn = TurnedRotation(slot, "delta", "body")
        >>> turn.to_absolute(about_z.expand(2, 3), about_z, None)
        tensor([[0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 1.5000]])
    """

    slot: RotationSlot
    kind: str
    frame: str

    def to_absolute(self, chunk: Tensor, base: Tensor, is_pad: Tensor | None) -> Tensor:
        """Return the chunk with this rotation absolute.

        Args:
            chunk: ``[*B, H, A]``.
            base: ``[*B, A]``, absolute, in the layout and unit of the chunk.
            is_pad: bool ``[*B, H]``, True = padded: those deltas turn nothing.

        Returns:
            ``[*B, H, A]``.
        """
        steps, before = self._quaternions(chunk), self._quaternions(base)
        if self.kind == "relative":
            targets = self._after(steps, before.unsqueeze(-2))
        else:
            if is_pad is not None:
                still = steps.new_tensor(_NO_TURN)
                steps = torch.where(is_pad.unsqueeze(-1), still, steps)
            reached = []
            for step in steps.unbind(-2):
                before = self._after(step, before)
                reached.append(before)
            targets = torch.stack(reached, -2)
        return self._written(chunk, targets)

    def from_absolute(
        self, chunk: Tensor, base: Tensor, is_pad: Tensor | None
    ) -> Tensor:
        """Undo :meth:`to_absolute`; padded deltas turn nothing."""
        targets, first = self._quaternions(chunk), self._quaternions(base)
        first = first.unsqueeze(-2)
        if self.kind == "relative":
            return self._written(chunk, self._between(first, targets))
        first = first.expand_as(targets[..., :1, :])
        before = torch.cat([first, targets[..., :-1, :]], -2)
        if is_pad is not None:
            before = torch.where(is_pad.roll(1, -1).unsqueeze(-1), first, before)
            targets = torch.where(is_pad.unsqueeze(-1), before, targets)
        return self._written(chunk, self._between(before, targets))

    def _after(self, step: Tensor, before: Tensor) -> Tensor:
        if self.frame == "world":
            return multiply(step, before)
        return multiply(before, step)

    def _between(self, before: Tensor, after: Tensor) -> Tensor:
        inverse = before * before.new_tensor((1.0, -1.0, -1.0, -1.0))
        if self.frame == "world":
            return multiply(after, inverse)
        return multiply(inverse, after)

    def _quaternions(self, value: Tensor) -> Tensor:
        slot = self.slot
        return to_quaternion(value[..., slot.dims].double() * slot.to_rad, slot.layout)

    def _written(self, chunk: Tensor, quaternions: Tensor) -> Tensor:
        turned = from_quaternion(quaternions, self.slot.layout) / self.slot.to_rad
        chunk = chunk.clone()
        chunk[..., self.slot.dims] = turned.to(chunk.dtype)
        return chunk


def multiply(first: Tensor, second: Tensor) -> Tensor:
    """Return the product of quaternions ``[..., 4]``, real part first.

    Turning by it is turning by ``second``, then by ``first``, about fixed axes.

    Examples:
        >>> i, j = torch.eye(4)[1], torch.eye(4)[2]
        >>> multiply(i, j)
        tensor([0., 0., 0., 1.])
    """
    a, b, c, d = first.unbind(-1)
    w, x, y, z = second.unbind(-1)
    parts = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return torch.stack(parts, -1)
