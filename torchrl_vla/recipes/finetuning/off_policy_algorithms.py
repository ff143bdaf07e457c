"""Off-policy algorithms by name: RLPD, Q-chunking, residual and noise space.

The module needs no PyTorch, so that the command line can list the options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torchrl_vla._internal.lazy_package import lazy_module
from torchrl_vla.errors import SettingsError

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_vla.policies import VLAWrapperBase
    from torchrl_vla.recipes.finetuning import off_policy_parts
    from torchrl_vla.recipes.finetuning.off_policy_parts import OffPolicyParts
else:
    off_policy_parts = lazy_module("torchrl_vla.recipes.finetuning.off_policy_parts")


@dataclass(frozen=True)
class OffPolicy:
    """What the off-policy algorithms have in common.

    Args:
        gamma: Discount of one control step.
        updates_per_decision: Optimizer steps for each decision that was collected.
        warm_up: Optimizer steps of the critic before the first batch, on demonstrations
            alone.
        demonstration_share: Share of demonstrations in each batch, where there are any.
        capacity: Most decisions that the replay keeps of each source.
        members: Critics of the ensemble.
        target_members: Members, drawn anew for each batch, whose least value is the
            target.
        hidden: Width of the critics and of a small actor.
        train_encoder: True = critic and small actor learn features of their own from
            the observations, beginning with the policy's; False = they read the
            policy's features, computed once. A policy that mistakes what it sees needs
            it; it costs an encoder's passes in each step, and images in the replay.
        critic_lr: Learning rate of the critic.
        tau: How far the target critic moves towards the critic in each step.
        truncated_is_failure: True = an episode that ran out of time counts as a
            failure, as in an evaluation.

    Raises:
        SettingsError: a number is out of its range.
    """

    gamma: float = 0.98
    updates_per_decision: float = 4.0
    warm_up: int = 0
    demonstration_share: float = 0.5
    capacity: int = 100_000
    members: int = 5
    target_members: int = 2
    hidden: int = 256
    train_encoder: bool = False
    critic_lr: float = 3e-4
    tau: float = 0.005
    truncated_is_failure: bool = True
    group_size: ClassVar[int] = 1
    needs_critic: ClassVar[bool] = False
    #: Key of what the critic values, and False = demonstrations have none of it.
    action_key: ClassVar[str] = "action_chunk"
    takes_demonstrations: ClassVar[bool] = True
    #: True = the policy has to be a stochastic one.
    trains_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds = {
            "gamma": (0.0, 1.0),
            "updates_per_decision": (1e-6, 1e6),
            "warm_up": (0, 1e9),
            "demonstration_share": (0.0, 1.0),
            "capacity": (1, 1e12),
            "members": (1, 1e3),
            "target_members": (1, self.members),
            "hidden": (1, 1e6),
            "critic_lr": (1e-12, 1e3),
            "tau": (1e-9, 1.0),
        }
        for name, (low, high) in bounds.items():
            value = vars(self)[name]
            if not low <= value <= high:
                raise SettingsError(
                    f"{type(self).__name__}: expected {name} in [{low:g}, {high:g}], "
                    f"got {value}."
                )

    def make_parts(
        self, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
    ) -> OffPolicyParts:
        """Return what acts, the loss and what is trained; drawn with PyTorch's seed.

        Args:
            policy: as it was cloned.
            env: where it learns.
            replan_interval: actions that are executed per decision; None = all.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RLPD(OffPolicy):
    """Train the policy itself by soft actor-critic, half on demonstrations.

    It needs a Gaussian policy (`to_stochastic`). All its weights that require a
    gradient are trained.

    Args:
        initial_alpha: First weight of the entropy.
        entropy_in_target: True = targets contain the entropy of what follows.
    """

    initial_alpha: float = 0.01
    entropy_in_target: bool = False
    trains_policy: ClassVar[bool] = True

    def make_parts(
        self, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
    ) -> OffPolicyParts:
        """Return the policy, and soft actor-critic."""
        return off_policy_parts.make_rlpd(self, policy, env, replan_interval)


@dataclass(frozen=True)
class QC(OffPolicy):
    """Keep the policy, and execute the best of N chunks by a critic (Q-chunking).

    Args:
        num_samples: Chunks that are compared, in acting and in targets.
    """

    num_samples: int = 16

    def make_parts(
        self, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
    ) -> OffPolicyParts:
        """Return ``BestOfN`` around the policy, and the critic's loss."""
        return off_policy_parts.make_qc(self, policy, env, replan_interval)


@dataclass(frozen=True)
class Residual(OffPolicy):
    """Keep the policy, and learn a bounded correction of its chunks.

    Args:
        bound: Largest correction of a number, in the policy's space.
        exploration_std: First standard deviation of the correction, in units of
            ``bound``.
        initial_alpha: First weight of the entropy.
        entropy_in_target: True = targets contain the entropy of what follows.
    """

    bound: float = 0.5
    exploration_std: float = 0.5
    initial_alpha: float = 0.01
    entropy_in_target: bool = False

    def make_parts(
        self, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
    ) -> OffPolicyParts:
        """Return ``ResidualPolicy`` around the policy, and soft actor-critic."""
        return off_policy_parts.make_residual(self, policy, env, replan_interval)


@dataclass(frozen=True)
class NoiseSpace(OffPolicy):
    """Keep a flow or diffusion policy, and learn the noise that it starts from (DSRL).

    Demonstrations say nothing about noise: it takes none.

    Args:
        bound: Largest magnitude of a number of the noise.
        exploration_std: First standard deviation of the noise, in units of ``bound``.
        initial_alpha: First weight of the entropy.
        entropy_in_target: True = targets contain the entropy of what follows.
    """

    bound: float = 1.5
    exploration_std: float = 0.7
    initial_alpha: float = 0.01
    entropy_in_target: bool = False
    action_key: ClassVar[str] = "chunk_noise"
    takes_demonstrations: ClassVar[bool] = False

    def make_parts(
        self, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
    ) -> OffPolicyParts:
        """Return ``NoiseSpacePolicy`` around the policy, and soft actor-critic."""
        return off_policy_parts.make_noise_space(self, policy, env, replan_interval)


OFF_POLICY: dict[str, type[OffPolicy]] = {
    "rlpd": RLPD,
    "qc": QC,
    "residual": Residual,
    "dsrl": NoiseSpace,
}
"""Off-policy algorithms that the command line knows by name."""
