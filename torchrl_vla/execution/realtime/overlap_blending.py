"""Blending of a new chunk with the rest of the old one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class OverlapBlending(ABC):
    """Combine two predictions of the same actions (abstract).

    A blended action is no chunk's own, so log-probs in the rollout are not its: train a
    policy by RL without blending.
    """

    @abstractmethod
    def __call__(self, old: Tensor, new: Tensor, count: Tensor) -> Tensor:
        """Return the actions to execute, float ``[N, H, A]``.

        Args:
            old: what the chunk in execution says, ``[N, H, A]``.
            new: what the new chunk says, ``[N, H, A]``.
            count: chunks that are blended in ``old``, int64 ``[N, H, 1]``, at least 1.
        """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class Replace(OverlapBlending):
    """Execute the new chunk.

    Examples:
        >>> import torch
        >>> Replace()(torch.zeros(1), torch.ones(1), torch.ones(1))
        tensor([1.])
    """

    def __call__(self, old: Tensor, new: Tensor, count: Tensor) -> Tensor:
        """Return ``new``."""
        return new


class WeightedAverage(OverlapBlending):
    """Execute the weighted average of both.

    LeRobot's names are weights of the old chunk: ``weighted_average`` is 0.3,
    ``average`` 0.5, ``conservative`` 0.7.

    Args:
        old_weight: of the chunk in execution, 0 .. 1; the new one has the rest.

    Raises:
        ValueError: the weight is outside.

    Examples:
        >>> import torch
        >>> WeightedAverage(0.25)(torch.zeros(1), torch.ones(1), torch.ones(1))
        tensor([0.7500])
    """

    def __init__(self, old_weight: float = 0.3) -> None:
        if not 0 <= old_weight <= 1:
            raise ValueError(
                f"WeightedAverage: expected old_weight in 0..1, got {old_weight}."
            )
        self.old_weight = old_weight

    def __call__(self, old: Tensor, new: Tensor, count: Tensor) -> Tensor:
        """Return ``w old + (1 - w) new``."""
        return self.old_weight * old + (1 - self.old_weight) * new


class ACTEnsemble(OverlapBlending):
    r"""Execute the exponentially weighted mean of all chunks so far (ACT).

    The ``i``-th prediction of an action, the oldest first, weighs ``exp(-m i)``. Called
    at every step it is :class:`TemporalEnsemble`.

    Args:
        coefficient: ``m``; ACT's is 0.01, 0 is the plain mean, below 0 newer
            predictions weigh more.

    Raises:
        ValueError: the coefficient is not finite.

    Examples:
        >>> import torch
        >>> mean_of_two = torch.full((1, 1, 1), 3.0)
        >>> new = torch.zeros(1, 1, 1)
        >>> ACTEnsemble(0.0)(mean_of_two, new, torch.full((1, 1, 1), 2)).item()
        2.0

    Source: Zhao et al., `Learning Fine-Grained Bimanual Manipulation with Low-Cost
    Hardware <https://arxiv.org/abs/2304.13705>`_ (ACT), algorithm 2.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        if not math.isfinite(coefficient):
            raise ValueError(
                f"ACTEnsemble: expected a finite coefficient, got {coefficient}. ACT's "
                "is 0.01."
            )
        self.coefficient = coefficient

    def __call__(self, old: Tensor, new: Tensor, count: Tensor) -> Tensor:
        """Return ``(old (w_0 + .. + w_n-1) + new w_n) / (w_0 + .. + w_n)``."""
        most = int(count.max()) + 1
        index = torch.arange(most, device=new.device, dtype=new.dtype)
        weights = torch.exp(-self.coefficient * index)
        sums = weights.cumsum(0)
        return (old * sums[count - 1] + new * weights[count]) / sums[count]
