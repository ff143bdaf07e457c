"""Encoded observation: states, keys and values of a trunk, made once per decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Keys and values of one layer, each ``[N, G, L, D]``.
LayerCache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """What a trunk makes of ``N`` observations, and what is added behind them.

    Args:
        states: last hidden states, float ``[N, L, F]``.
        mask: bool ``[N, L]``, True = a token, False = padding, which nothing reads.
        positions: int64 ``[N]``, position of the next token.
        cache: of each layer, keys (rotated) and values ``[N, G, L, D]``.

    Examples:
        >>> prefix = Prefix(
        ...     states=torch.tensor([[[2.0], [4.0], [9.0]]]),
        ...     mask=torch.tensor([[True, True, False]]),
        ...     positions=torch.tensor([2]),
        ...     cache=(),
        ... )
        >>> prefix.features
        tensor([[3.]])
        >>> len(prefix.repeat(2))
        2
    """

    states: Tensor
    mask: Tensor
    positions: Tensor
    cache: tuple[LayerCache, ...]

    def __len__(self) -> int:
        """Return ``N``."""
        return len(self.mask)

    @property
    def features(self) -> Tensor:
        """The mean state over the tokens, float ``[N, F]``."""
        weights = self.mask.unsqueeze(-1).to(self.states.dtype)
        return (self.states * weights).sum(1) / weights.sum(1)

    def repeat(self, times: int) -> Prefix:
        """Return the rows ``times`` times, one block behind the other."""
        if times == 1:
            return self
        return Prefix(
            torch.cat([self.states] * times),
            torch.cat([self.mask] * times),
            torch.cat([self.positions] * times),
            tuple(
                (torch.cat([k] * times), torch.cat([v] * times)) for k, v in self.cache
            ),
        )

    def detach(self) -> Prefix:
        """Return it without a gradient to the trunk."""
        cache = tuple((k.detach(), v.detach()) for k, v in self.cache)
        return Prefix(self.states.detach(), self.mask, self.positions, cache)
