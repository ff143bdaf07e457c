"""Backbone, instructions and critic that the tiny policies share."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tensordict.nn import TensorDictModuleBase

from torchrl_vla.policies.readable_weights import uncompiled
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.policies.tiny.tiny_critic import TinyCritic
from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.schema import InstructionTable, ObservationKeys


class TinyPolicy(VLAWrapperBase):
    """Give a head class a backbone.

    Abstract: stands before the head's base class. The constructor of a tiny policy
    calls the head's constructor and sets ``backbone``; what it is called with is in
    :attr:`config`.
    """

    needs_model_space: ClassVar[bool] = True
    backbone: TinyBackbone

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts.

        A loss copies its policy: set the table before building the loss.
        """
        return self.backbone.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.backbone.instructions = table

    @property
    def backbone_config(self) -> BackboneConfig:
        """What the backbone was built with; ``state_dim`` is known after a call."""
        backbone = uncompiled(self.backbone)
        if self.keys.state is None:
            return backbone.config
        return replace(backbone.config, state_dim=backbone.state.in_features or None)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "action_dim": self.action_dim,
            "chunk_size": self.chunk_size,
            "backbone": self.backbone_config,
            "keys": self.keys,
            "instructions": self.instructions,
        }

    def make_critic(self) -> TensorDictModuleBase:
        """Return a critic that starts from a copy of the policy's backbone."""
        return TinyCritic.from_policy(self)


def keys_read(keys: ObservationKeys, backbone: BackboneConfig) -> ObservationKeys:
    """Return the keys that a policy reads: no images for one without cameras."""
    return replace(keys, image=None) if backbone.cameras == () else keys
