"""Weights with which a new chunk continues the old one (real-time chunking)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class PrefixSchedule(ABC):
    """Weigh the positions that a new chunk shares with the one in execution (abstract).

    A schedule defines the weights between the frozen positions, which are executed
    while the policy runs, and those that the old chunk does not cover.

    Note:
        A weight is 1 at no free position of a ramp and 0 at none that the old chunk
        covers; the ramp starts one step earlier and ends one later than the overlap.

    Source: Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow
    Policies" (2025), equation 5.
    """

    #: Name in the paper's code and in LeRobot.
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return the weights, float ``[H]``.

        Args:
            frozen: ``d``, positions that are executed before the new chunk is there.
            overlap: positions that the old chunk covers, ``H - s`` in the paper; of
                the frozen ones no more than these count.
            chunk_size: ``H``.

        Raises:
            ValueError: not ``0 <= overlap <= chunk_size``, or ``frozen < 0``.
        """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _check(self, frozen: int, overlap: int, chunk_size: int) -> None:
        if not 0 <= overlap <= chunk_size or frozen < 0:
            raise ValueError(
                f"{type(self).__name__}: expected 0 <= overlap <= chunk_size and "
                f"frozen >= 0, got overlap={overlap}, chunk_size={chunk_size}, "
                f"frozen={frozen}. The old chunk covers H - s positions of the new one."
            )

    def _ramp(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return 1 where frozen, a straight line through the overlap, then 0."""
        self._check(frozen, overlap, chunk_size)
        frozen = min(frozen, overlap)
        position = torch.arange(chunk_size)
        line = (overlap - position) / (overlap - frozen + 1)
        return line.clamp(0, 1)


class LinearPrefix(PrefixSchedule):
    """Decrease the weight linearly over the overlap.

    Examples:
        >>> LinearPrefix()(frozen=1, overlap=4, chunk_size=5)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """

    name = "linear"

    def __call__(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return ``c = (overlap - h) / (overlap - frozen + 1)``, clamped to 0..1."""
        return self._ramp(frozen, overlap, chunk_size)


class ExponentialPrefix(PrefixSchedule):
    """Decrease the weight exponentially over the overlap, as the paper does.

    Examples:
        >>> ExponentialPrefix()(frozen=1, overlap=4, chunk_size=5)
        tensor([1.0000, 0.4876, 0.1888, 0.0413, 0.0000])
    """

    name = "exp"

    def __call__(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return ``c (e^c - 1) / (e - 1)`` of the linear ramp ``c``."""
        ramp = self._ramp(frozen, overlap, chunk_size)
        return ramp * torch.expm1(ramp) / (math.e - 1)


class OnesPrefix(PrefixSchedule):
    """Follow the old chunk at every position that it covers.

    Examples:
        >>> OnesPrefix()(frozen=1, overlap=4, chunk_size=5)
        tensor([1., 1., 1., 1., 0.])
    """

    name = "ones"

    def __call__(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return 1 wherever there is an old action."""
        self._check(frozen, overlap, chunk_size)
        return (torch.arange(chunk_size) < overlap).float()


class ZerosPrefix(PrefixSchedule):
    """Follow the old chunk at the frozen positions only (hard masking).

    Examples:
        >>> ZerosPrefix()(frozen=1, overlap=4, chunk_size=5)
        tensor([1., 0., 0., 0., 0.])
    """

    name = "zeros"

    def __call__(self, frozen: int, overlap: int, chunk_size: int) -> Tensor:
        """Return 1 where frozen, 0 elsewhere."""
        self._check(frozen, overlap, chunk_size)
        return (torch.arange(chunk_size) < min(frozen, overlap)).float()


#: Schedules by name.
PREFIX_SCHEDULES: dict[str, PrefixSchedule] = {
    schedule.name: schedule
    for schedule in (LinearPrefix(), ExponentialPrefix(), OnesPrefix(), ZerosPrefix())
}
