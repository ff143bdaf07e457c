"""Policies of any kind, put into one that steers them."""

from __future__ import annotations

from tensordict import NestedKey
from torchrl.envs import EnvBase

from torchrl_vla.errors import SettingsError
from torchrl_vla.policies.critics.chunk_critic import (
    ChunkCriticConfig,
    TinyChunkCritic,
)
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.protocol import observation_encoder
from torchrl_vla.policies.steering.best_of_n import BestOfN
from torchrl_vla.policies.steering.bounded_head import HeadConfig
from torchrl_vla.policies.steering.noise_space_policy import NoiseSpacePolicy
from torchrl_vla.policies.steering.residual_policy import ResidualPolicy
from torchrl_vla.policies.steering.steering_policy import SteeringPolicy
from torchrl_vla.policies.stochastic_policy import StochasticVLAWrapper
from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.schema import ACTION_CHUNK_KEY


def make_chunk_critic(
    policy: VLAWrapperBase,
    env: EnvBase,
    config: ChunkCriticConfig = ChunkCriticConfig(),
    *,
    action_key: NestedKey = ACTION_CHUNK_KEY,
    frozen: bool = True,
) -> TinyChunkCritic:
    """Return an untrained critic of a policy's chunks.

    It reads the frozen features of a tiny policy; for any other policy it encodes the
    environment's observations itself.

    Args:
        policy: gives the sizes of a chunk.
        env: gives the observations.
        config: sizes of the critic.

    Keyword Args:
        action_key: the entry that is valued.
        frozen: True = a tiny policy's features are not trained.
    """
    return TinyChunkCritic(
        observation_encoder(policy, env, frozen=frozen),
        action_dim=policy.action_dim,
        chunk_size=policy.chunk_size,
        config=config,
        action_key=action_key,
    )


def make_residual_policy(
    policy: VLAWrapperBase,
    env: EnvBase,
    *,
    bound: float,
    head: HeadConfig = HeadConfig(),
    frozen: bool = True,
) -> SteeringPolicy:
    """Return an untrained :class:`ResidualPolicy` around a policy of any kind."""
    encoder = observation_encoder(policy, env, frozen=frozen)
    return ResidualPolicy(policy, encoder, bound=float(bound), head=head)


def make_noise_space_policy(
    policy: VLAWrapperBase,
    env: EnvBase,
    *,
    bound: float,
    head: HeadConfig = HeadConfig(),
    frozen: bool = True,
) -> SteeringPolicy:
    """Return an untrained :class:`NoiseSpacePolicy` around a denoising policy.

    Raises:
        SettingsError: the policy does not denoise.
    """
    match policy:
        case DenoisingVLAWrapper():
            encoder = observation_encoder(policy, env, frozen=frozen)
            return NoiseSpacePolicy(policy, encoder, bound=bound, head=head)
    raise SettingsError(
        "make_noise_space_policy: expected a flow or diffusion policy, which starts "
        f"from noise, got {type(policy).__name__}. Use a residual policy, which takes "
        "any kind."
    )


def make_best_of_n(
    policy: VLAWrapperBase, critic: TinyChunkCritic, n: int
) -> SteeringPolicy:
    """Return :class:`BestOfN` around a policy that samples.

    Raises:
        SettingsError: the policy does not sample.
    """
    match policy:
        case StochasticVLAWrapper():
            return BestOfN(policy, critic, n)
    raise SettingsError(
        "make_best_of_n: expected a policy that samples chunks, got "
        f"{type(policy).__name__}. {policy.likelihood_advice}"
    )
