"""Base class of policies around a frozen one."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn
from torchrl.envs import Compose

from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.policies.policy_folder import Marked
from torchrl_vla.policies.steering.steering_folder import (
    describe_steering,
    write_steering,
)
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.schema import (
    NOISE_SEED_KEY,
    InstructionTable,
    PolicySpace,
    RobotDatasetMetadata,
)

#: Stands for a policy's own noise seeds where a call does not sample.
_NO_SEED = 0


class SteeringPolicy(ContinuousVLAWrapper):
    """Hold a policy whose weights stay as they are, and stand for it everywhere.

    Abstract. Space, metadata, instructions and what the environment needs are those of
    the policy inside.

    Args:
        policy: is contained, not copied; its weights require no gradient from now on.
        extra_keys: what is read beside the policy's own inputs.
    """

    likelihood_advice = (
        "It is trained off-policy: finetune with RLPD, QC, Residual or NoiseSpace."
    )

    def __init__(
        self, policy: VLAWrapperBase, extra_keys: tuple[NestedKey, ...] = ()
    ) -> None:
        super().__init__(
            action_dim=policy.action_dim,
            chunk_size=policy.chunk_size,
            keys=policy.keys,
        )
        self.policy = policy.requires_grad_(False)
        self.in_keys = list(dict.fromkeys([*policy.in_keys, *extra_keys]))
        more = [*policy.optional_in_keys, NOISE_SEED_KEY]
        self.optional_in_keys = list(dict.fromkeys(more))
        self.cloning_loss = policy.cloning_loss

    def train(self, mode: bool = True) -> SteeringPolicy:
        """Switch this policy's own parts; the frozen one always evaluates."""
        super().train(mode)
        self.policy.eval()
        return self

    @property
    def policy_space(self) -> PolicySpace | None:
        """The space of the policy inside."""
        return self.policy.policy_space

    @policy_space.setter
    def policy_space(self, space: PolicySpace | None) -> None:
        self.policy.policy_space = space

    @property
    def training_metadata(self) -> RobotDatasetMetadata | None:  # type: ignore[override]
        """Metadata of the data that the policy inside was trained on."""
        return self.policy.training_metadata

    @training_metadata.setter
    def training_metadata(self, metadata: RobotDatasetMetadata | None) -> None:
        self.policy.training_metadata = metadata

    @property
    def n_action_steps(self) -> int | None:
        """Actions of a chunk that the policy inside wants executed; None = all."""
        return declared(self.policy, "n_action_steps", None)

    @property
    def instructions(self) -> InstructionTable | None:
        """The inner policy's table that gives instruction ids their texts."""
        return declared(self.policy, "instructions", None)

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        cast(Marked, self.policy).instructions = table
        for encoder in self._encoders():
            encoder.instructions = table

    def make_environment_transform(self) -> Compose:
        """Return what the policy inside needs from step to step."""
        return self.policy.make_environment_transform()

    @property
    @abstractmethod
    def config(self) -> dict[str, object]:
        """The constructor's arguments, with the policy inside at ``policy``."""

    def to_folder(self, folder: str | Path) -> None:
        """Write the policy inside to ``policy/``, and what is around it beside."""
        self.check_writable()
        write_steering(Path(folder), self, self.config, self.policy)

    def check_writable(self) -> None:
        """Refuse what :meth:`to_folder` could not write.

        Raises:
            SchemaError: says why.
        """
        describe_steering(self, self.config)
        if self.policy.folder_format is None:
            self.policy.check_writable()

    @property
    def frozen(self) -> bool:
        """True = all that an update reads is in what :meth:`store` writes."""
        return all(encoder.frozen for encoder in self._encoders())

    def _encoders(self) -> list[ObservationEncoder]:
        return [m for m in self.modules() if type(m) is ObservationEncoder]

    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the frozen parts make of an observation; returns the same.

        It is what a replay keeps, so that no update computes it again.
        """
        for encoder in self._encoders():
            encoder.store(tensordict)
        return tensordict


def is_sampling() -> bool:
    """Return whether the interaction type is ``RANDOM``."""
    return interaction_type() == InteractionType.RANDOM


def seeds_of(tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
    """Return a call's noise seeds ``[*B]``; None = PyTorch's global generator.

    A call that does not sample has seeds too, always the same: so that candidates are
    drawn alike each time.
    """
    seeds = tensordict.get(NOISE_SEED_KEY, None)
    if seeds is None and not is_sampling():
        batch = tensordict.batch_size
        return torch.full(batch, _NO_SEED, dtype=torch.int64, device=like.device)
    return seeds


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's weights; the CPU where it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
