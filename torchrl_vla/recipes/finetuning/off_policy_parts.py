"""Policies, critics and losses of the off-policy algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from torchrl_vla.objectives import (
    BackupConfig,
    ChunkQLoss,
    ChunkSACLoss,
    EntropyConfig,
    QChunkingLoss,
)
from torchrl_vla.policies import (
    BestOfN,
    ChunkCriticConfig,
    DenoisingVLAWrapper,
    HeadConfig,
    NoiseSpacePolicy,
    ObservationEncoder,
    ResidualPolicy,
    StochasticVLAWrapper,
    TinyChunkCritic,
    VLAWrapperBase,
    observation_encoder,
)
from torchrl_vla.recipes.finetuning.finetune_settings import SettingsError
from torchrl_vla.recipes.finetuning.off_policy_algorithms import (
    QC,
    RLPD,
    NoiseSpace,
    OffPolicy,
    Residual,
)


class Stores(Protocol):
    """What writes to rows of a replay what its frozen parts make of them."""

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write features; return the same tensordict."""


@dataclass(frozen=True)
class OffPolicyParts:
    """What acts, what is trained, and by which loss.

    Args:
        policy: acts, and is saved.
        critic: of chunks; shares its weights with the loss.
        loss: of decisions.
        actor: weights that ``lr`` trains; none where only the critic learns.
        stores: completes rows of the replay.
    """

    policy: VLAWrapperBase
    critic: TinyChunkCritic
    loss: ChunkQLoss
    actor: nn.Module | None
    stores: Stores


def make_rlpd(
    algorithm: RLPD, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
) -> OffPolicyParts:
    """Return the policy itself, and soft actor-critic."""
    match policy:
        case StochasticVLAWrapper() if policy.sample_key == "chunk_sample":
            pass
        case _:
            raise SettingsError(
                "finetune: expected a Gaussian policy for RLPD, whose samples have a "
                f"gradient, got {type(policy).__name__}. Call to_stochastic on a "
                "regression policy; or use Residual, or NoiseSpace for a flow."
            )
    critic = _make_critic(algorithm, policy, env, replan_interval)
    loss = _soft(algorithm, policy, critic)
    return OffPolicyParts(policy, critic, loss, policy, critic.encoder)


def make_qc(
    algorithm: QC, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
) -> OffPolicyParts:
    """Return the best of N around a policy, and the critic's loss."""
    critic = _make_critic(algorithm, policy, env, replan_interval)
    stochastic = cast(StochasticVLAWrapper, policy)
    best = BestOfN(stochastic, critic, algorithm.num_samples)
    loss = QChunkingLoss(
        policy, critic, num_samples=algorithm.num_samples, backup=_backup(algorithm)
    )
    return OffPolicyParts(best, critic, loss, None, best)


def make_residual(
    algorithm: Residual,
    policy: VLAWrapperBase,
    env: EnvBase,
    replan_interval: int | None,
) -> OffPolicyParts:
    """Return the residual policy, and soft actor-critic."""
    critic = _make_critic(algorithm, policy, env, replan_interval)
    around = ResidualPolicy(
        policy,
        observation_encoder(policy, env),
        bound=float(algorithm.bound),
        head=HeadConfig(hidden=algorithm.hidden, initial_std=algorithm.initial_std),
    )
    loss = _soft(algorithm, around, critic)
    return OffPolicyParts(around, critic, loss, around, around)


def make_noise_space(
    algorithm: NoiseSpace,
    policy: VLAWrapperBase,
    env: EnvBase,
    replan_interval: int | None,
) -> OffPolicyParts:
    """Return the noise-space policy, and soft actor-critic."""
    match policy:
        case DenoisingVLAWrapper():
            pass
        case _:
            raise SettingsError(
                "finetune: expected a flow or diffusion policy for NoiseSpace, which "
                f"chooses the noise that it starts from, got {type(policy).__name__}. "
                "Use Residual, which takes a policy of any kind."
            )
    critic = _make_critic(algorithm, policy, env, replan_interval)
    around = NoiseSpacePolicy(
        policy,
        observation_encoder(policy, env),
        bound=algorithm.bound,
        head=HeadConfig(hidden=algorithm.hidden, initial_std=algorithm.initial_std),
    )
    loss = _soft(algorithm, around, critic)
    return OffPolicyParts(around, critic, loss, around, around)


def _make_critic(
    algorithm: OffPolicy,
    policy: VLAWrapperBase,
    env: EnvBase,
    replan_interval: int | None,
) -> TinyChunkCritic:
    encoder: ObservationEncoder = observation_encoder(policy, env)
    return TinyChunkCritic(
        encoder,
        action_dim=policy.action_dim,
        chunk_size=policy.chunk_size,
        config=ChunkCriticConfig(
            members=algorithm.members,
            hidden=algorithm.hidden,
            replan_interval=replan_interval,
        ),
        action_key=algorithm.action_key,
    )


def _backup(algorithm: OffPolicy) -> BackupConfig:
    return BackupConfig(
        gamma=algorithm.gamma,
        truncated_is_failure=algorithm.truncated_is_failure,
        members=algorithm.target_members,
    )


def _soft(
    algorithm: RLPD | Residual | NoiseSpace,
    policy: VLAWrapperBase,
    critic: TinyChunkCritic,
) -> ChunkSACLoss:
    loss = ChunkSACLoss(
        policy,
        critic,
        backup=_backup(algorithm),
        entropy=EntropyConfig(
            initial_alpha=algorithm.initial_alpha,
            in_backup=algorithm.entropy_in_target,
        ),
    )
    loss.set_keys(action=algorithm.action_key)
    return loss
