"""Advantages of the decisions of a rollout, by algorithm."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.objectives import (
    DecisionGAE,
    EpisodeOutcomes,
    GRPOAdvantage,
    RLOOAdvantage,
)


def estimate_by_critic(
    rollout: TensorDictBase, critic: TensorDictModuleBase | None, **options: Any
) -> TensorDictBase:
    """Return all decisions of a rollout, advantages standardized over the batch.

    Args:
        rollout: outer steps ``[*B, T]``.
        critic: of :class:`DecisionGAE`.
        options: ``gamma``, ``lmbda`` and ``truncated_is_failure``, also of it.
    """
    decisions = DecisionGAE(critic, **options)(rollout).reshape(-1)
    advantage = decisions["advantage"]
    std = advantage.std() if len(advantage) > 1 else advantage.new_ones(())
    centred = advantage - advantage.mean()
    return decisions.set("advantage", centred / std.clamp_min(1e-6))


def estimate_by_group(
    rollout: TensorDictBase,
    *,
    keep: tuple[float, float] | None,
    divide_by_std: bool | None = None,
) -> TensorDictBase:
    """Return the decisions of complete episodes in groups that differ.

    Args:
        rollout: outer steps ``[N, T]``.
        keep: bounds of a group's success rate; None = keep all groups.
        divide_by_std: of :class:`GRPOAdvantage`; None = RLOO.
    """
    if divide_by_std is None:
        return RLOOAdvantage(keep=keep)(rollout)
    return GRPOAdvantage(keep=keep, divide_by_std=divide_by_std)(rollout)


def count_outcomes(rollout: TensorDictBase) -> tuple[int, int]:
    """Return how many episodes ended in a rollout, and how many of them succeeded."""
    outcomes = EpisodeOutcomes.from_rollout(rollout)
    ended = outcomes.is_complete
    if outcomes.success is None:
        return int(ended.sum()), 0
    return int(ended.sum()), int((ended & outcomes.success).sum())
