"""Adapter of a user's module to the policy protocol."""

from __future__ import annotations

from typing import ClassVar, cast

from tensordict import NestedKey, TensorDictBase, is_tensor_collection, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import Compose, Transform

from torchrl_vla.policies.policy_folder import Marked
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    InstructionTable,
    ObservationKeys,
    PolicySpace,
    RobotDatasetMetadata,
    SchemaError,
    check_image_sizes,
)


class ModulePolicy(ContinuousVLAWrapper):
    """Run a user's module as a policy.

    The module's ``forward(tensordict)`` returns the chunk, or the tensordict with
    ``action_chunk``. It is called with a shallow copy without ``action_chunk``, so a
    target never passes for a prediction. Optional members of the protocol that the
    module defines (``cloning_loss``, ``make_critic``, ``to_stochastic``,
    ``make_environment_transform``, ``make_target_transform``, ``instructions``) are the
    adapter's. Make one with :func:`~torchrl_vla.policies.as_policy`.

    **Reads** the module's ``in_keys`` where it declares them, else ``keys``. **Writes**
    ``action_chunk`` float ``[*B, H, A]``, and the module's other ``out_keys`` where it
    declares them.

    Args:
        module: the user's; trained in place.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        keys: observation entries that the module reads, where it has no ``in_keys``.

    Raises:
        SchemaError: the module returns something else, or a chunk of another shape.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Still(nn.Module):
        ...     def forward(self, tensordict):
        ...         return torch.zeros(*tensordict.batch_size, 4, 2)
        >>> policy = ModulePolicy(Still(), action_dim=2, chunk_size=4)
        >>> policy(TensorDict(batch_size=[3]))["action_chunk"].shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        action_dim: int,
        chunk_size: int,
        keys: ObservationKeys = ObservationKeys(),
    ) -> None:
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, keys=keys)
        self.module = module
        self.cloning_loss = declared(module, "cloning_loss", "chunk")
        self.keeps_state = declared(module, "keeps_state", False)
        self.in_keys = _keys_of(module, "in_keys", self.in_keys)
        self.out_keys = _keys_of(module, "out_keys", self.out_keys)
        if self.chunk_key not in self.out_keys:
            raise SchemaError(
                f"as_policy: expected a module that writes {ACTION_CHUNK_KEY!r}, got "
                f"{type(module).__name__} with out_keys {self.out_keys}. Name the "
                "chunk so in its out_keys."
            )

    @property
    def policy_space(self) -> PolicySpace | None:
        """The space of its states and actions, kept at the module."""
        return declared(self.module, "policy_space", None)

    @policy_space.setter
    def policy_space(self, space: PolicySpace | None) -> None:
        cast(Marked, self.module).policy_space = space

    @property
    def training_metadata(self) -> RobotDatasetMetadata | None:  # type: ignore[override]
        """Metadata of the data that it was trained on, kept at the module."""
        return declared(self.module, "training_metadata", None)

    @training_metadata.setter
    def training_metadata(self, metadata: RobotDatasetMetadata | None) -> None:
        cast(Marked, self.module).training_metadata = metadata

    @property
    def instructions(self) -> InstructionTable | None:
        """The module's table that gives instruction ids their texts."""
        return declared(self.module, "instructions", None)

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        cast(Marked, self.module).instructions = table

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""
        return self._call(tensordict)[0]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk, and what else the module announces."""
        chunk, written = self._call(tensordict)
        chunk = self._check_shape(chunk, "the module", tensordict.batch_size)
        if written is not None:
            tensordict.update(written.select(*self.out_keys))
        return tensordict.set(self.chunk_key, chunk)

    def make_critic(self) -> TensorDictModuleBase | None:
        """Return the module's critic; None = it makes none."""
        make = declared(self.module, "make_critic", None)
        return super().make_critic() if make is None else make()

    stochastic_options: ClassVar[tuple[str, ...]] = ("initial_std", "flow_noise")

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> VLAWrapperBase | None:
        """Return what the module becomes with log-probabilities; None = unknown."""
        convert = declared(self.module, "to_stochastic", None)
        if convert is None:
            return None
        return convert(initial_std=initial_std, flow_noise=flow_noise)

    def make_environment_transform(self) -> Compose:
        """Return what the module needs in its environment from step to step."""
        make = declared(self.module, "make_environment_transform", None)
        return super().make_environment_transform() if make is None else make()

    def make_target_transform(self) -> Transform | None:
        """Return what turns chunks into the module's targets; None = chunks are."""
        make = declared(self.module, "make_target_transform", None)
        return None if make is None else make()

    def _call(self, tensordict: TensorDictBase) -> tuple[Tensor, TensorDictBase | None]:
        check_image_sizes(
            type(self.module).__name__, tensordict, self.training_metadata
        )
        answer = self.module(tensordict.exclude(*self.out_keys))
        chunk, written = answer, None
        if is_tensor_collection(answer):
            chunk, written = answer.get(self.chunk_key, None), answer
        match chunk:
            case Tensor():
                return chunk, written
        raise SchemaError(
            f"{type(self.module).__name__}: expected forward(tensordict) to return the "
            f"chunk [*B, H, A], or the tensordict with it at {self.chunk_key!r}, got "
            f"{type(answer).__name__}"
            f"{'' if written is None else ' without it'}."
        )


def declared(module: nn.Module, name: str, default):
    """Return an optional member of the protocol, or the default without one."""
    return getattr(module, name, default)


def _keys_of(module: nn.Module, name: str, default: list[NestedKey]) -> list[NestedKey]:
    keys = declared(module, name, None)
    return default if keys is None else [unravel_key(key) for key in keys]
