"""Small network that proposes bounded changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrl_vla.policies.gaussian.inward_gradient_clamp import inward_clamp

_LOWEST, _HIGHEST = -5.0, 2.0  # of the logarithm of a standard deviation before tanh


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a small actor around a frozen policy.

    Args:
        hidden: width of the layers.
        depth: number of hidden layers.
        initial_std: first standard deviation of what is sampled, in units of the bound.

    Raises:
        ValueError: a number is not positive.
    """

    hidden: int = 256
    depth: int = 2
    initial_std: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"HeadConfig: expected {name} > 0, got {value}.")


class BoundedHead(nn.Module):
    """Mean and standard deviation of a change, both ``[*B, H, A]``.

    The mean is 0 at first: what is changed begins as it is.

    Args:
        in_features: size of the input.
        shape: ``(H, A)``.
        config: sizes.
    """

    def __init__(
        self, in_features: int, shape: tuple[int, int], config: HeadConfig
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_features, *(config.hidden,) * (config.depth - 1)):
            layers += [
                nn.Linear(width, config.hidden),
                nn.LayerNorm(config.hidden),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        size = shape[0] * shape[1]
        self.out = nn.Linear(config.hidden, 2 * size)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias[:size] = 0.0
            self.out.bias[size:] = torch.tensor(config.initial_std).log()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the standard deviation."""
        mean, log_std = self.out(self.layers(x)).chunk(2, -1)
        log_std = inward_clamp(log_std, _LOWEST, _HIGHEST)
        return mean.unflatten(-1, self.shape), log_std.unflatten(-1, self.shape)
