"""Moving average of a policy's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from torchrl_vla.distributed.sharding import local, shard_like


class WeightAverage:
    """Moving average of a policy's weights, sharded where they are.

    ``torch.optim.swa_utils.AveragedModel`` copies the module, which FSDP2 refuses.
    """

    def __init__(self, policy: nn.Module, update: Callable[..., None]) -> None:
        self.parameters = list(policy.parameters())
        self.weights = [local(p.detach()) for p in self.parameters]
        self.means = [weight.clone() for weight in self.weights]
        self._update = update
        self.count = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average."""
        if self.count == 0:
            for mean, weight in zip(self.means, self.weights, strict=True):
                mean.copy_(weight)
        else:
            self._update(self.means, self.weights, self.count)
        self.count += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Give the policy the average."""
        for mean, weight in zip(self.means, self.weights, strict=True):
            weight.copy_(mean)

    def sharded_state(self) -> dict[str, Any]:
        """Return the means, sharded as the weights are, and the number of updates."""
        pairs = zip(self.parameters, self.means, strict=True)
        means = {str(i): shard_like(p, mean) for i, (p, mean) in enumerate(pairs)}
        return {"means": means, "count": self.count}

    def state_dict(self) -> dict[str, object]:
        """Return the means and the number of updates."""
        return {"means": self.means, "count": self.count}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the means and the number of updates over."""
        for mean, stored in zip(self.means, state["means"], strict=True):
            mean.copy_(stored)
        self.count.copy_(state["count"])


def ramped_average(decay: float) -> Callable[..., None]:
    """Return the update of a moving average of weights, whose decay rises to its value.

    At step ``t`` the decay is ``min(decay, (1 + t) / (10 + t))``: the average spans the
    last tenth of the steps until it spans ``1 / (1 - decay)`` of them, so that a short
    training is not left with its first weights.

    Source: the ``num_updates`` of TensorFlow's ``ExponentialMovingAverage``.
    """

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        step = float(count)
        ramped = min(decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(ramped)(averages, weights, count)

    return update
