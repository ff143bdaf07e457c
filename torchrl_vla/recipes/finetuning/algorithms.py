"""What turns a rollout into decisions with an advantage: PPO, GRPO and RLOO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.objectives import DecisionGAE, GRPOAdvantage, RLOOAdvantage


class Algorithm(Protocol):
    """How decisions are judged."""

    @property
    def group_size(self) -> int:
        """Rows of the environment that begin their episodes alike."""

    @property
    def needs_critic(self) -> bool:
        """True = a critic is trained beside the policy, at its ``critic_lr``."""

    @property
    def critic_warmup(self) -> int:
        """Iterations at the start in which the critic alone learns."""

    def judge(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return decisions ``[N]`` with ``advantage`` ``[N, 1]``.

        Args:
            rollout: outer steps ``[*B, T]``.
            critic: where ``needs_critic``.
        """


@dataclass(frozen=True)
class PPO:
    """Judge by a critic, with generalized advantages over decisions.

    Args:
        gamma: discount of one control step.
        lmbda: of one decision.
        truncated_is_failure: see :class:`DecisionGAE`. An evaluation counts an episode
            that ran out of time as a failure, so training does. Where it does not, a
            policy may learn to hesitate: each draw is another chance, forever.
        critic_lr: learning rate of the critic.
        critic_warmup: iterations in which the critic alone learns.
    """

    gamma: float = 0.99
    lmbda: float = 0.95
    truncated_is_failure: bool = True
    critic_lr: float = 1e-3
    critic_warmup: int = 1
    group_size: ClassVar[int] = 1
    needs_critic: ClassVar[bool] = True

    def judge(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return all decisions, their advantages standardized over the batch."""
        estimate = DecisionGAE(
            critic,
            gamma=self.gamma,
            lmbda=self.lmbda,
            truncated_is_failure=self.truncated_is_failure,
        )
        decisions = estimate(rollout).reshape(-1)
        advantage = decisions["advantage"]
        spread = advantage.std() if len(advantage) > 1 else advantage.new_ones(())
        centred = advantage - advantage.mean()
        return decisions.set("advantage", centred / spread.clamp_min(1e-6))


@dataclass(frozen=True)
class GRPO:
    """Judge by the other episodes that began alike, in units of their spread.

    Args:
        group_size: episodes of a group.
        keep: groups whose mean return is not strictly between these are left out:
            where all succeed, or all fail, there is nothing to compare (dynamic
            sampling). For rewards that sum up to 0 or 1.
        divide_by_std: False = only subtract the group's mean.
    """

    group_size: int = 8
    keep: tuple[float, float] | None = (0.0, 1.0)
    divide_by_std: bool = True
    needs_critic: ClassVar[bool] = False
    critic_warmup: ClassVar[int] = 0

    def judge(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return the decisions of complete episodes in groups that differ."""
        judge = GRPOAdvantage(keep=self.keep, divide_by_std=self.divide_by_std)
        return judge(rollout)


@dataclass(frozen=True)
class RLOO:
    """Judge by the mean return of the group's other episodes.

    Args:
        group_size: episodes of a group.
        keep: see :class:`GRPO`.
    """

    group_size: int = 8
    keep: tuple[float, float] | None = (0.0, 1.0)
    needs_critic: ClassVar[bool] = False
    critic_warmup: ClassVar[int] = 0

    def judge(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return the decisions of complete episodes in groups that differ."""
        return RLOOAdvantage(keep=self.keep)(rollout)


ALGORITHMS: dict[str, type[PPO] | type[GRPO] | type[RLOO]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
}
"""The algorithms that the command line knows by name."""


def count_outcomes(rollout: TensorDictBase) -> tuple[int, int]:
    """Return how many episodes ended in a rollout, and how many in success."""
    done = rollout["next", "done"]
    success = rollout.get(("next", "success"), None)
    ended = int(done.sum())
    if success is None:
        return ended, 0
    return ended, int(torch.logical_and(success, done).sum())
