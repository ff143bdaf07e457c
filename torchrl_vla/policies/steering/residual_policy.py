"""Bounded correction of a frozen policy's chunks."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor

from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.steering.bounded_head import BoundedHead, HeadConfig
from torchrl_vla.policies.steering.squashed_chunk import SquashedChunkDistribution
from torchrl_vla.policies.steering.steering_policy import (
    SteeringPolicy,
    is_sampling,
)
from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.schema import BASE_CHUNK_KEY, NOISE_SEED_KEY


class ResidualPolicy(SteeringPolicy):
    """Correct the chunks of a frozen policy of any kind, by a bounded amount.

    The chunk is ``base + bound * tanh(u)``, where a small network reads the features of
    the observation and the base chunk. Untrained and without sampling it acts exactly
    as the policy inside. Train it with ``ChunkSACLoss``, or ``finetune`` with
    ``Residual()``.

    **Reads** what the policy and the encoder read. **Writes** ``action_chunk`` float
    ``[*B, H, A]``, in the space of the policy.

    Args:
        policy: predicts or samples a chunk; LeRobot's included. Contained and frozen.
        encoder: of the observation, for the correction.

    Keyword Args:
        bound: largest correction of a number of an action, in the policy's space: in
            model space 1 is the half range or the standard deviation, in robot space
            the robot's own unit. One for all dimensions of an action, or one for each.
        head: sizes of the network.

    Raises:
        ValueError: a bound is not positive, or there is not one per dimension.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyVLA
        >>> backbone = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> base = TinyVLA(action_dim=2, chunk_size=4, backbone=backbone)
        >>> encoder = ObservationEncoder.from_policy(base)
        >>> policy = ResidualPolicy(base, encoder, bound=0.2)
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> chunk = base(data.clone())["action_chunk"]
        >>> torch.equal(policy(data)["action_chunk"], chunk)
        True

    Source: T. Johannink et al., arXiv:1812.03201 (residual reinforcement learning); L.
    Ankile et al., arXiv:2509.19301 (residuals of chunk policies, off-policy).
    """

    def __init__(
        self,
        policy: VLAWrapperBase,
        encoder: ObservationEncoder,
        *,
        bound: float | tuple[float, ...] = 0.2,
        head: HeadConfig = HeadConfig(),
    ) -> None:
        super().__init__(policy, tuple(encoder.in_keys))
        bounds = (bound,) * self.action_dim if isinstance(bound, float) else bound
        if len(bounds) != self.action_dim or not all(b > 0 for b in bounds):
            raise ValueError(
                f"ResidualPolicy: expected a bound > 0, or {self.action_dim}, one per "
                f"dimension of an action, got {bound}."
            )
        self.bound, self.head = bound, head
        self.encoder = encoder
        size = self.chunk_size * self.action_dim
        self.correction = BoundedHead(
            encoder.num_features + size, (self.chunk_size, self.action_dim), head
        )
        self.register_buffer("bounds", torch.tensor(bounds), persistent=False)

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
        """Return the distribution of corrected chunks."""
        base = self._base_chunk(tensordict)
        x = torch.cat([self.encoder(tensordict), base.flatten(-2)], -1)
        mean, log_std = self.correction(x)
        return SquashedChunkDistribution(mean, log_std, self.bounds, base)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the corrected chunk; sampled where the interaction is ``RANDOM``."""
        dist = self.get_dist(tensordict)
        if not is_sampling():
            return dist.mode
        seeds = tensordict.get(NOISE_SEED_KEY, None)
        return dist.sample() if seeds is None else dist.sample_with_seeds(seeds)

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Also write ``base_chunk`` ``[*B, H, A]``."""
        super().store(tensordict)
        return tensordict.set(BASE_CHUNK_KEY, self._base_chunk(tensordict))

    @torch.no_grad()
    def _base_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the frozen policy's chunk, as it is stored or computed."""
        stored = tensordict.get(BASE_CHUNK_KEY, None)
        if stored is not None:
            return stored
        inputs = [*self.policy.in_keys, *self.policy.optional_in_keys]
        with set_interaction_type(InteractionType.DETERMINISTIC):
            answer = self.policy(tensordict.select(*inputs, strict=False))

        return answer.get(self.chunk_key).detach()
