"""Encoder of observations that critics and small actors share with a policy."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.readable_weights import readable_weights
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy, keys_read
from torchrl_vla.schema import (
    OBSERVATION_FEATURES_KEY,
    InstructionTable,
    ObservationKeys,
)


class ObservationEncoder(nn.Module):
    """Encode an observation as features ``[*B, F]``, or read those that are stored.

    It is a backbone whose last layer begins as the identity, and shares no weight with
    a policy. A frozen one computes the same features for a row each time: a replay
    stores them once (:meth:`store`) and every update reads them.

    **Reads** what the backbone reads; where a frozen encoder finds
    ``observation_features`` float ``[*B, F]``, that alone.

    Args:
        backbone: sizes, cameras and encoders.

    Keyword Args:
        keys: observation entries that are read.
        frozen: True = its weights are not trained.
        instructions: table for instruction ids; text needs none.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import TinyVLA
        >>> config = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> policy = TinyVLA(action_dim=2, chunk_size=4, backbone=config)
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> ObservationEncoder.from_policy(policy)(data).shape
        torch.Size([8])
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        keys: ObservationKeys = ObservationKeys(),
        frozen: bool = True,
        instructions: InstructionTable | None = None,
    ) -> None:
        super().__init__()
        keys = keys_read(keys, backbone)
        self.backbone = TinyBackbone(backbone.hidden, backbone, keys)
        nn.init.eye_(self.backbone.out.weight)
        nn.init.zeros_(self.backbone.out.bias)
        self.num_features: int = backbone.hidden
        self.frozen = frozen
        self.keys = keys
        self.in_keys: list[NestedKey] = keys.present
        self.instructions = instructions
        self.requires_grad_(not frozen)

    @classmethod
    def from_policy(
        cls, policy: TinyPolicy, *, frozen: bool = True
    ) -> ObservationEncoder:
        """Make the encoder of one of the tiny policies; weights are copied.

        Args:
            policy: complete: it has seen a state, or was built for one.

        Keyword Args:
            frozen: True = the copies are not trained.
        """
        encoder = cls(
            policy.backbone_config,
            keys=policy.keys,
            frozen=frozen,
            instructions=policy.instructions,
        )
        weights = readable_weights(policy.backbone)
        own = encoder.backbone.state_dict()
        kept = {name: own[name] for name in ("out.weight", "out.bias")}
        encoder.backbone.load_state_dict({**weights, **kept})
        return encoder.to(weights["out.weight"])

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "backbone": self.backbone.config,
            "keys": self.keys,
            "frozen": self.frozen,
            "instructions": self.instructions,
        }

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.backbone.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.backbone.instructions = table

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Return the features ``[*B, F]``."""
        if self.frozen:
            stored = tensordict.get(OBSERVATION_FEATURES_KEY, None)
            if stored is not None:
                return stored
        return self.backbone(tensordict)

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``observation_features`` if the encoder is frozen; returns the same.

        A trained encoder computes other features after each step: nothing is stored.
        """
        if not self.frozen:
            return tensordict
        features = self.backbone(tensordict).detach()
        return tensordict.set(OBSERVATION_FEATURES_KEY, features)
