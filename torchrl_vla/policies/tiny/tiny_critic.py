"""Critic that starts from a tiny policy's backbone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Protocol

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from torchrl_vla.policies.readable_weights import uncompiled
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.schema import (
    IMAGE_KEY,
    STATE_KEY,
    InstructionTable,
    ObservationKeys,
    SchemaError,
)

VALUE_KEY: NestedKey = "state_value"


class HasBackbone(Protocol):
    """A tiny policy, as far as its critic needs it."""

    backbone: TinyBackbone
    instructions: InstructionTable | None


class TinyCritic(TensorDictModuleBase):
    """Estimate the return from the observation that the policy sees.

    It starts from a copy of a policy's trained backbone and shares no weight with it,
    so its gradient cannot change the policy. Its first estimate is 0 everywhere.

    **Reads** what the policy reads. **Writes** ``state_value`` float ``[*B, 1]``.

    Args:
        backbone: is copied; its last layer is replaced.

    Keyword Args:
        value_key: where the estimate is written.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyVLA
        >>> config = BackboneConfig(state_dim=3, cameras=())
        >>> policy = TinyVLA(action_dim=2, chunk_size=4, backbone=config)
        >>> critic = TinyCritic.from_policy(policy)
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> critic(data)["state_value"]
        tensor([0.], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self, backbone: TinyBackbone, *, value_key: NestedKey = VALUE_KEY
    ) -> None:
        super().__init__()
        backbone = uncompiled(backbone)
        self.backbone = copy.deepcopy(backbone)
        self.backbone.out = nn.Linear(backbone.out.in_features, 1)
        nn.init.zeros_(self.backbone.out.weight)
        nn.init.zeros_(self.backbone.out.bias)
        self.backbone.to(backbone.out.weight)  # device and dtype
        self.in_keys = backbone.keys.present
        self.out_keys = [value_key]

    @classmethod
    def from_policy(cls, policy: HasBackbone) -> TinyCritic:
        """Make the critic of one of the tiny policies, from a copy of its backbone."""
        critic = cls(policy.backbone)
        critic.instructions = policy.instructions
        return critic

    @classmethod
    def from_env(cls, env: EnvBase) -> TinyCritic:
        """Make an untrained critic for the observations of an environment.

        Args:
            env: writes state or images, and the instruction.

        Raises:
            SchemaError: it writes no instruction.
        """
        spec = env.observation_spec
        found = [unravel_key(key) for key in spec.keys(True, True)]
        state = STATE_KEY if STATE_KEY in found else None
        keys = ObservationKeys(state=state)
        if keys.instruction not in found:
            raise SchemaError(
                f"TinyCritic: expected {keys.instruction!r} of {type(env).__name__}, "
                f"got only {sorted(map(str, found))}. Pass critic=."
            )
        names = [key[-1] for key in found if key[:2] == IMAGE_KEY and len(key) == 3]
        cameras = None if IMAGE_KEY in found else tuple(sorted(names))
        keys = keys if cameras != () else replace(keys, image=None)
        state_dim = None if state is None else spec[state].shape[-1]
        config = BackboneConfig(state_dim=state_dim, cameras=cameras)
        critic = cls(TinyBackbone(1, config, keys))
        critic.instructions = env.instructions
        return critic

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.backbone.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.backbone.instructions = table

    def value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the estimate, ``[*B, 1]``."""
        return self.backbone(tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the estimate."""
        return tensordict.set(self.out_keys[0], self.value(tensordict))
