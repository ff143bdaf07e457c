"""Choice of the noise that a frozen flow or diffusion policy starts from."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.steering.bounded_head import BoundedHead, HeadConfig
from torchrl_vla.policies.steering.squashed_chunk import SquashedChunkDistribution
from torchrl_vla.policies.steering.steering_policy import (
    SteeringPolicy,
    is_sampling,
)
from torchrl_vla.schema import CHUNK_NOISE_KEY, NOISE_SEED_KEY


class NoiseSpacePolicy(SteeringPolicy):
    """Steer a frozen flow or diffusion policy by the noise that it starts from (DSRL).

    A small network chooses the initial noise, within ``bound``; the frozen policy
    denoises it without further noise. Whatever is chosen, the chunk is one that the
    policy makes of some noise. Untrained and without sampling the noise is 0: the
    policy's own mode. The critic and the replay speak of the noise (``chunk_noise``),
    not of the chunk. Numbers that the policy moves and does not emit (SmolVLA pads its
    actions) start from 0.

    **Reads** what the policy and the encoder read. **Writes** ``action_chunk`` and
    ``chunk_noise`` float ``[*B, H, A]``.

    Args:
        policy: denoises from any start: a flow, a diffusion policy, or
            ``LeRobotFlowPolicy``. Contained and frozen.
        encoder: of the observation, for the choice of noise.

    Keyword Args:
        bound: largest magnitude of a number of the noise, in standard deviations.
        head: sizes of the network.

    Raises:
        ValueError: the bound is not positive.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyFlowVLA
        >>> backbone = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> base = TinyFlowVLA(action_dim=2, chunk_size=4, backbone=backbone)
        >>> policy = NoiseSpacePolicy(base, ObservationEncoder.from_policy(base))
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["chunk_noise"].abs().max().item()
        0.0

    Source: A. Wagenmaker et al., arXiv:2506.15799 (DSRL).
    """

    def __init__(
        self,
        policy: DenoisingVLAWrapper,
        encoder: ObservationEncoder,
        *,
        bound: float = 1.5,
        head: HeadConfig = HeadConfig(),
    ) -> None:
        super().__init__(policy, tuple(encoder.in_keys))
        if not bound > 0:
            raise ValueError(f"NoiseSpacePolicy: expected bound > 0, got {bound}.")
        self.bound, self.head = bound, head
        self.encoder = encoder
        self.choice = BoundedHead(
            encoder.num_features, (self.chunk_size, self.action_dim), head
        )
        self.register_buffer(
            "bounds", torch.full((self.action_dim,), bound), persistent=False
        )
        self.out_keys = [*self.out_keys, CHUNK_NOISE_KEY]

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "policy": self.policy,
            "encoder": self.encoder,
            "bound": self.bound,
            "head": self.head,
        }

    def get_dist(self, tensordict: TensorDictBase) -> SquashedChunkDistribution:
        """Return the distribution of the initial noise."""
        mean, log_std = self.choice(self.encoder(tensordict))
        return SquashedChunkDistribution(mean, log_std, self.bounds)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk ``[*B, H, A]`` that the chosen noise leads to."""
        return self._denoise(tensordict, self._choose(tensordict))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the noise and the chunk."""
        noise = self._choose(tensordict)
        tensordict.set(CHUNK_NOISE_KEY, noise)
        return tensordict.set(self.chunk_key, self._denoise(tensordict, noise))

    def _choose(self, tensordict: TensorDictBase) -> Tensor:
        dist = self.get_dist(tensordict)
        if not is_sampling():
            return dist.mode
        seeds = tensordict.get(NOISE_SEED_KEY, None)
        return dist.sample() if seeds is None else dist.sample_with_seeds(seeds)

    @torch.no_grad()
    def _denoise(self, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        padding = self.policy.path_dim - self.action_dim
        start = torch.nn.functional.pad(noise, (0, padding))
        path = self.policy.get_dist(tensordict).flow_from(start)
        return self.policy.decode(path)
