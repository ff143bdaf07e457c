"""Critic of an observation and a chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.policies.critics.ensemble import Ensemble
from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    SchemaError,
    check_positive_int,
)

Q_VALUES_KEY: NestedKey = "state_action_value"


@dataclass(frozen=True)
class ChunkCriticConfig:
    """Sizes of a :class:`TinyChunkCritic`.

    Args:
        members: ``E``, networks of the ensemble.
        hidden: width of their layers.
        depth: number of their hidden layers.
        replan_interval: actions of a chunk that are executed per decision; the critic
            reads no later ones. None = all.

    Raises:
        ValueError: a number is not positive.
    """

    members: int = 2
    hidden: int = 256
    depth: int = 2
    replan_interval: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_positive_int("ChunkCriticConfig", name, value)


class TinyChunkCritic(TensorDictModuleBase):
    """Estimate the return of a chunk that is executed from an observation.

    An ensemble of layer-normalized networks on the features of the observation, the
    chunk and the mask of its positions that count. A position that does not count has
    no influence and a gradient of exactly zero.

    Warning:
        The mask is what is known when the decision is made. Of a decision that the end
        of its episode cut short, all positions count: a critic that sees how early an
        episode ended sees whether it succeeded, and undervalues every chunk that has
        not succeeded yet. The losses build the mask that way.

    **Reads** what the encoder reads; ``action_chunk`` float ``[*B, H, A]``. **Writes**
    ``state_action_value`` float ``[*B, E]``, for a chunk of which all planned positions
    count.

    Args:
        encoder: of the observation; is contained, not copied.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        config: sizes of the ensemble.
        action_key: the entry that is valued: the chunk, or a latent of its shape.

    Raises:
        ValueError: ``replan_interval`` is longer than a chunk.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyVLA
        >>> backbone = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> policy = TinyVLA(action_dim=2, chunk_size=4, backbone=backbone)
        >>> critic = TinyChunkCritic.from_policy(policy, ChunkCriticConfig(members=5))
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(6, 3), batch_size=[6]),
        ...     action_chunk=torch.zeros(6, 4, 2),
        ...     batch_size=[6],
        ... ).set("language_instruction", ["pick"] * 6)
        >>> critic(data)["state_action_value"].shape
        torch.Size([6, 5])

    Source: Q. Li et al., arXiv:2507.07969 (critics of chunks); P. Ball et al.,
    arXiv:2302.02948 (ensembles with layer normalization).
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        *,
        action_dim: int,
        chunk_size: int,
        config: ChunkCriticConfig = ChunkCriticConfig(),
        action_key: NestedKey = ACTION_CHUNK_KEY,
    ) -> None:
        super().__init__()
        executed = config.replan_interval or chunk_size
        if executed > chunk_size:
            raise ValueError(
                f"TinyChunkCritic: expected replan_interval in 1..chunk_size="
                f"{chunk_size}, got {executed}."
            )
        self.action_dim, self.chunk_size = action_dim, chunk_size
        self.sizes = config
        self.action_key = action_key
        self.encoder = encoder
        self.ensemble = Ensemble(
            config.members,
            in_features=encoder.num_features + chunk_size * (action_dim + 1),
            hidden=config.hidden,
            depth=config.depth,
        )
        planned = torch.arange(chunk_size) < executed
        self.register_buffer("planned", planned, persistent=False)
        self.in_keys = [*encoder.in_keys, action_key]
        self.out_keys = [Q_VALUES_KEY]

    @classmethod
    def from_policy(
        cls,
        policy: TinyPolicy,
        config: ChunkCriticConfig = ChunkCriticConfig(),
        *,
        frozen: bool = True,
    ) -> TinyChunkCritic:
        """Make an untrained critic that reads a policy's features.

        Args:
            policy: a tiny one; its backbone is copied.
            config: sizes of the ensemble.

        Keyword Args:
            frozen: True = the copy of the backbone is not trained.
        """
        encoder = ObservationEncoder.from_policy(policy, frozen=frozen)
        sizes = {"action_dim": policy.action_dim, "chunk_size": policy.chunk_size}
        critic = cls(encoder, config=config, **sizes)
        return critic.to(encoder.backbone.out.weight)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "encoder": self.encoder,
            "action_dim": self.action_dim,
            "chunk_size": self.chunk_size,
            "config": self.sizes,
            "action_key": self.action_key,
        }

    def encode(self, tensordict: TensorDictBase) -> Tensor:
        """Return the features ``[*B, F]`` of an observation."""
        return self.encoder(tensordict)

    def values(
        self, features: Tensor, chunk: Tensor, counts: Tensor | None = None
    ) -> Tensor:
        """Return the estimate ``[E, *B]`` of each member.

        Args:
            features: of :meth:`encode`, ``[*B, F]``.
            chunk: ``[*B, H, A]``.
            counts: bool ``[*B, H]``, True = the position counts; None = all that are
                planned. Positions from ``replan_interval`` on never count.

        Raises:
            SchemaError: the chunk has another shape.
        """
        batch = features.shape[:-1]
        expected = (*batch, self.chunk_size, self.action_dim)
        if chunk.shape != expected:
            raise SchemaError(
                f"TinyChunkCritic: expected a chunk {list(expected)} at "
                f"{self.action_key!r}, got {list(chunk.shape)}. The critic was built "
                f"with chunk_size={self.chunk_size} and action_dim={self.action_dim}."
            )
        planned = self.planned.expand(expected[:-1])
        counts = planned if counts is None else planned & counts
        seen = torch.where(counts.unsqueeze(-1), chunk, 0.0).flatten(-2)
        x = torch.cat([features, seen, counts.to(seen.dtype)], -1)
        return self.ensemble(x.reshape(-1, x.shape[-1])).unflatten(-1, batch or (1,))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the estimates."""
        chunk = tensordict.get(self.action_key)
        values = self.values(self.encode(tensordict), chunk)
        if not tensordict.batch_size:
            values = values.squeeze(-1)
        return tensordict.set(Q_VALUES_KEY, values.movedim(0, -1))
