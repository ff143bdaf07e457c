"""Noise of LeRobot's sampling policies as a function of seeds."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import Policy
from torchrl_vla.policies.lerobot.registry import PolicyKind
from torchrl_vla.rollout import hash_numbers, normals

#: Separates the numbers between the steps from the initial noise.
_BETWEEN_STEPS = 1


class SeededNoise:
    """Noise of which each row depends on its own seed alone.

    So an episode's chunks do not depend on the episodes that run beside it.

    Args:
        seeds: int64 ``[N]``.
        shape: ``(H, D)`` of the initial noise.
        device: of the policy.
    """

    def __init__(
        self, seeds: Tensor, shape: tuple[int, int], device: torch.device
    ) -> None:
        self._seeds = seeds
        numbers = normals(seeds.to(device), shape[0] * shape[1])
        #: The initial noise, float32 ``[N, H, D]``.
        self.first = numbers.float().view(-1, *shape)

    def generators(self) -> list[torch.Generator]:
        """Make a generator for each row, for what is drawn after the first noise."""
        seeds = hash_numbers(_BETWEEN_STEPS, self._seeds).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def take(self, index: Tensor) -> Tensor:
        """Return rows of the initial noise."""
        return self.first[index.to(self.first.device)]


def takes_noise(policy: Policy, kind: PolicyKind) -> bool:
    """Return whether LeRobot's installed version of a policy takes initial noise."""
    if kind.noise_shape is None:
        return False
    parameters = inspect.signature(policy.predict_action_chunk).parameters.values()
    return any(p.name == "noise" or p.kind is p.VAR_KEYWORD for p in parameters)
