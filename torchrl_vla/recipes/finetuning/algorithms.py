"""Algorithms of reinforcement learning by name: PPO, GRPO and RLOO.

The module needs no PyTorch, so that the command line can list the options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torchrl_vla._internal.lazy_package import lazy_module

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase

    from torchrl_vla.recipes.finetuning import advantage_estimation
else:
    advantage_estimation = lazy_module(
        "torchrl_vla.recipes.finetuning.advantage_estimation"
    )


class Algorithm(Protocol):
    """Estimator of the advantages of a batch of decisions."""

    @property
    def group_size(self) -> int:
        """Environment indices that begin their episodes alike."""

    @property
    def needs_critic(self) -> bool:
        """True = a critic is trained beside the policy, at its ``critic_lr``."""

    @property
    def critic_lr(self) -> float:
        """Learning rate of the critic; 0 where none is needed."""

    @property
    def critic_warmup(self) -> int:
        """Iterations at the start in which the critic alone learns."""

    def estimate_advantages(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return decisions ``[N]`` with ``advantage`` ``[N, 1]``.

        Args:
            rollout: outer steps ``[*B, T]``.
            critic: where ``needs_critic``.
        """


@dataclass(frozen=True)
class PPO:
    """Estimate advantages with a critic: generalized advantages over decisions.

    Args:
        gamma: Discount of one control step. A lower one makes the policy more decisive.
        lmbda: Decay of the generalized advantages, per decision.
        truncated_is_failure: True = an episode that ran out of time counts as a
            failure, as in an evaluation. Otherwise a policy may learn to hesitate,
            because each draw is another chance.
        critic_lr: Learning rate of the critic.
        critic_warmup: Iterations at the start in which the critic alone learns.
    """

    gamma: float = 0.99
    lmbda: float = 0.95
    truncated_is_failure: bool = True
    critic_lr: float = 1e-3
    critic_warmup: int = 1
    group_size: ClassVar[int] = 1
    needs_critic: ClassVar[bool] = True

    def estimate_advantages(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return all decisions, their advantages standardized over the batch."""
        return advantage_estimation.estimate_by_critic(
            rollout,
            critic,
            gamma=self.gamma,
            lmbda=self.lmbda,
            truncated_is_failure=self.truncated_is_failure,
        )


@dataclass(frozen=True)
class GRPO:
    """Compare an episode with those that began alike, in standard deviations.

    Args:
        group_size: Episodes of a group, which begin alike.
        keep: Groups whose success rate is not strictly between these bounds are left
            out: where all episodes succeed, or all fail, there is nothing to compare
            (dynamic sampling). None = keep all groups.
        divide_by_std: False = only subtract the group's mean.
    """

    group_size: int = 8
    keep: tuple[float, float] | None = (0.0, 1.0)
    divide_by_std: bool = True
    needs_critic: ClassVar[bool] = False
    critic_lr: ClassVar[float] = 0.0
    critic_warmup: ClassVar[int] = 0

    def estimate_advantages(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return the decisions of complete episodes in groups that differ."""
        return advantage_estimation.estimate_by_group(
            rollout, keep=self.keep, divide_by_std=self.divide_by_std
        )


@dataclass(frozen=True)
class RLOO:
    """Compare an episode with the mean return of those that began alike.

    Args:
        group_size: Episodes of a group, which begin alike.
        keep: Groups whose success rate is not strictly between these bounds are left
            out; None = keep all groups.
    """

    group_size: int = 8
    keep: tuple[float, float] | None = (0.0, 1.0)
    needs_critic: ClassVar[bool] = False
    critic_lr: ClassVar[float] = 0.0
    critic_warmup: ClassVar[int] = 0

    def estimate_advantages(
        self, rollout: TensorDictBase, critic: TensorDictModuleBase | None
    ) -> TensorDictBase:
        """Return the decisions of complete episodes in groups that differ."""
        return advantage_estimation.estimate_by_group(rollout, keep=self.keep)


ALGORITHMS: dict[str, type[PPO] | type[GRPO] | type[RLOO]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
}
"""Algorithms that the command line knows by name."""
