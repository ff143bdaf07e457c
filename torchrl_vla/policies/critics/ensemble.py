"""Ensemble of small networks that run as one batched product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class _EnsembleLinear(nn.Module):
    """``E`` linear layers, ``[E, N, in]`` to ``[E, N, out]``."""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        weight = torch.empty(members, in_features, out_features)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        bias = torch.empty(members, 1, out_features)
        self.bias = nn.Parameter(bias.uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class _EnsembleNorm(nn.Module):
    """``E`` layer normalizations over the last dimension."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        normed = nn.functional.layer_norm(x, x.shape[-1:])
        return normed * self.weight + self.bias


class Ensemble(nn.Module):
    """``E`` layer-normalized perceptrons of one input, each with weights of its own.

    Layer normalization bounds what a critic predicts for actions that it never saw,
    which keeps bootstrapped targets from growing without end.

    Args:
        members: ``E``.
        in_features: size of the input.
        hidden: width of the hidden layers.
        depth: number of hidden layers.

    Examples:
        >>> Ensemble(3, in_features=4, hidden=8, depth=2)(torch.zeros(5, 4)).shape
        torch.Size([3, 5])

    Source: P. Ball et al., arXiv:2302.02948 (layer normalization in critics).
    """

    def __init__(
        self, members: int, *, in_features: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        for width in (in_features, *(hidden,) * (depth - 1)):
            layers.append(_EnsembleLinear(members, width, hidden))
            layers.append(_EnsembleNorm(members, hidden))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, _EnsembleLinear(members, hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``[E, N]`` for the inputs ``[N, in_features]``."""
        return self.layers(x.expand(self.members, *x.shape)).squeeze(-1)
