"""Policy that makes a chunk of noise in one step."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.steering.bounded_head import BoundedHead, HeadConfig
from torchrl_vla.policies.steering.steering_policy import is_sampling
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.rollout import normals
from torchrl_vla.schema import NOISE_SEED_KEY, InstructionTable


class OneStepPolicy(ContinuousVLAWrapper):
    """Map an observation and noise to a chunk in one step, distilled from a flow.

    Several denoising steps become one, and a critic's gradient reaches the policy
    without going through them; see ``QCFQLLoss``. Without sampling the noise is 0.

    **Reads** what the encoder reads; where it is, ``noise_seed``. **Writes**
    ``action_chunk`` float ``[*B, H, A]``.

    Args:
        encoder: of the observation; is contained, not copied.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        head: sizes of the network.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyFlowVLA
        >>> backbone = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> flow = TinyFlowVLA(action_dim=2, chunk_size=4, backbone=backbone)
        >>> policy = OneStepPolicy.from_policy(flow)
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["action_chunk"].shape
        torch.Size([4, 2])

    Source: S. Park, Q. Li, S. Levine, arXiv:2502.02538 (flow Q-learning).
    """

    needs_model_space = True

    def __init__(
        self,
        encoder: ObservationEncoder,
        *,
        action_dim: int,
        chunk_size: int,
        head: HeadConfig = HeadConfig(),
    ) -> None:
        super().__init__(
            action_dim=action_dim, chunk_size=chunk_size, keys=encoder.keys
        )
        self.encoder, self.head = encoder, head
        self.in_keys = list(encoder.in_keys)
        self.optional_in_keys = [NOISE_SEED_KEY]
        size = chunk_size * action_dim
        self.network = BoundedHead(
            encoder.num_features + size, (chunk_size, action_dim), head
        )

    @classmethod
    def from_policy(
        cls, policy: TinyPolicy, head: HeadConfig = HeadConfig(), *, frozen: bool = True
    ) -> OneStepPolicy:
        """Make an untrained one that reads a policy's features.

        Args:
            policy: a tiny one, such as ``TinyFlowVLA``; its backbone is copied.
            head: sizes of the network.

        Keyword Args:
            frozen: True = the copy of the backbone is not trained.
        """
        encoder = ObservationEncoder.from_policy(policy, frozen=frozen)
        sizes = {"action_dim": policy.action_dim, "chunk_size": policy.chunk_size}
        made = cls(encoder, head=head, **sizes).to(encoder.backbone.out.weight)
        made.policy_space = policy.policy_space
        made.training_metadata = policy.training_metadata
        return made

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "encoder": self.encoder,
            "action_dim": self.action_dim,
            "chunk_size": self.chunk_size,
            "head": self.head,
        }

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.encoder.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.encoder.instructions = table

    def chunk_from(self, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        """Return the chunk ``[*B, H, A]`` that noise of the same shape becomes."""
        x = torch.cat([self.encoder(tensordict), noise.flatten(-2)], -1)
        return self.network(x)[0]

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk; of sampled noise where the interaction is ``RANDOM``."""
        shape = (*tensordict.batch_size, self.chunk_size, self.action_dim)
        like = self.network.out.weight
        noise = like.new_zeros(shape)
        if is_sampling():
            seeds = tensordict.get(NOISE_SEED_KEY, None)
            if seeds is None:
                noise = torch.randn_like(noise)
            else:
                drawn = normals(seeds.reshape(-1), noise.shape[-2:].numel())
                noise = drawn.reshape(shape).to(like)
        return self.chunk_from(tensordict, noise)

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the features of a frozen encoder; returns the same tensordict."""
        return self.encoder.store(tensordict)
