"""Policies, critics and losses of the off-policy algorithms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from torchrl_vla.objectives import (
    BackupConfig,
    ChunkCritic,
    ChunkQLoss,
    ChunkSACLoss,
    EntropyConfig,
    QChunkingLoss,
)
from torchrl_vla.policies import (
    ChunkCriticConfig,
    HeadConfig,
    StochasticVLAWrapper,
    VLAWrapperBase,
    make_best_of_n,
    make_chunk_critic,
    make_noise_space_policy,
    make_residual_policy,
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
    """What completes rows of a replay with what frozen parts make of them."""

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write features; return the same tensordict."""


@dataclass(frozen=True)
class OffPolicyParts:
    """What acts, what is trained, and by which loss.

    Args:
        policy: acts, and is saved.
        critic: of chunks; shares its weights with the loss.
        loss: of decisions.
        actor: weights that ``lr`` trains; None = only the critic learns.
        stores: completes rows of the replay.
        keeps_observations: True = updates read observations, not features alone.
    """

    policy: VLAWrapperBase
    critic: nn.Module
    loss: ChunkQLoss
    actor: nn.Module | None
    stores: Stores
    keeps_observations: bool


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
    options = _critic_options(algorithm, replan_interval)
    critic = make_chunk_critic(policy, env, **options)
    loss = _soft(algorithm, policy, critic)
    return OffPolicyParts(policy, critic, loss, policy, critic.encoder, True)


def make_qc(
    algorithm: QC, policy: VLAWrapperBase, env: EnvBase, replan_interval: int | None
) -> OffPolicyParts:
    """Return the best of N around a policy, and the critic's loss."""
    options = _critic_options(algorithm, replan_interval)
    critic = make_chunk_critic(policy, env, **options)
    best = make_best_of_n(policy, critic, algorithm.num_samples)
    loss = QChunkingLoss(
        policy, critic, num_samples=algorithm.num_samples, backup=_backup(algorithm)
    )
    return OffPolicyParts(best, critic, loss, None, best, not best.frozen)


def make_residual(
    algorithm: Residual,
    policy: VLAWrapperBase,
    env: EnvBase,
    replan_interval: int | None,
) -> OffPolicyParts:
    """Return the residual policy, and soft actor-critic."""
    options = _critic_options(algorithm, replan_interval)
    critic = make_chunk_critic(policy, env, **options)
    around = make_residual_policy(
        policy,
        env,
        bound=algorithm.bound,
        head=_head(algorithm),
        frozen=not algorithm.train_encoder,
    )
    loss = _soft(algorithm, around, critic, algorithm.bound)
    return OffPolicyParts(around, critic, loss, around, around, not around.frozen)


def make_noise_space(
    algorithm: NoiseSpace,
    policy: VLAWrapperBase,
    env: EnvBase,
    replan_interval: int | None,
) -> OffPolicyParts:
    """Return the noise-space policy, and soft actor-critic."""
    around = make_noise_space_policy(
        policy,
        env,
        bound=algorithm.bound,
        head=_head(algorithm),
        frozen=not algorithm.train_encoder,
    )
    options = _critic_options(algorithm, replan_interval)
    critic = make_chunk_critic(policy, env, **options)
    loss = _soft(algorithm, around, critic, algorithm.bound)
    return OffPolicyParts(around, critic, loss, around, around, not around.frozen)


def _critic_options(
    algorithm: OffPolicy, replan_interval: int | None
) -> dict[str, Any]:
    return {
        "config": ChunkCriticConfig(
            members=algorithm.members,
            hidden=algorithm.hidden,
            replan_interval=replan_interval,
        ),
        "action_key": algorithm.action_key,
        "frozen": not algorithm.train_encoder,
    }


def _head(algorithm: Residual | NoiseSpace) -> HeadConfig:
    return HeadConfig(hidden=algorithm.hidden, initial_std=algorithm.exploration_std)


def _backup(algorithm: OffPolicy) -> BackupConfig:
    return BackupConfig(
        gamma=algorithm.gamma,
        truncated_is_failure=algorithm.truncated_is_failure,
        members=algorithm.target_members,
    )


def _soft(
    algorithm: RLPD | Residual | NoiseSpace,
    policy: VLAWrapperBase,
    critic: ChunkCritic,
    bound: float = 1.0,
) -> ChunkSACLoss:
    """Return the loss; the entropy that it aims at is in units of the bound."""
    numbers = int(critic.planned.sum()) * policy.action_dim
    loss = ChunkSACLoss(
        policy,
        critic,
        backup=_backup(algorithm),
        entropy=EntropyConfig(
            initial_alpha=algorithm.initial_alpha,
            target=numbers * (math.log(bound) - 1.0),
            in_backup=algorithm.entropy_in_target,
        ),
    )
    loss.set_keys(action=algorithm.action_key)
    return loss
