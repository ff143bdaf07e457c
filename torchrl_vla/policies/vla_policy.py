"""Base classes of vision-language-action policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, Transform
from typing_extensions import Self

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.policies.policy_folder import (
    check_writable,
    read_policy,
    write_policy,
)
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ObservationKeys,
    PolicySpace,
    RobotDatasetMetadata,
    SchemaError,
    check_positive_int,
)

_takes_torchrls_keys = torchrl_spellings(
    records={
        "keys": (
            ObservationKeys,
            {
                "image_key": "image",
                "state_key": "state",
                "instruction_key": "instruction",
            },
        )
    }
)


@_takes_torchrls_keys
class VLAWrapperBase(TensorDictModuleBase, ABC):
    """Map images, state and an instruction to the next ``H`` actions.

    Abstract: a policy is a :class:`ContinuousVLAWrapper`, which predicts a chunk, or a
    :class:`StochasticVLAWrapper`, which samples one with its log-probability. Any
    number of leading batch dimensions is allowed, and the output is in the space that
    the policy was trained in (:attr:`policy_space`). A policy reads its ``in_keys``
    and, where they are present, its ``optional_in_keys``.

    The members below are what training, evaluation and checkpoints ask of a policy;
    see :mod:`torchrl_vla.policies.protocol`.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        keys: observation entries that the policy reads.

    Raises:
        ValueError: a size is not positive.
    """

    #: Name of the loss that clones demonstrations: one of
    #: ``torchrl_vla.objectives.CLONING_LOSSES``, or ``"module:Class"``.
    cloning_loss: str = "chunk"
    #: True = the policy is made for normalized numbers and needs a ``ModelSpace``.
    needs_model_space: ClassVar[bool] = False
    #: Options of :meth:`to_stochastic` that have an effect.
    stochastic_options: ClassVar[tuple[str, ...]] = ("initial_std",)
    #: Whose files :meth:`to_folder` writes, e.g. ``"lerobot"``; None = ours.
    folder_format: str | None = None
    #: True = a call depends on those before it; what it needs from step to step should
    #: travel in the tensordict, so none of ours does.
    keeps_state: bool = False
    #: Of the data that it was trained on, set by training and checkpoints.
    training_metadata: RobotDatasetMetadata | None = None
    #: What to do for log-probabilities, in error messages.
    likelihood_advice: str = "Call to_stochastic(policy)."

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        keys: ObservationKeys = ObservationKeys(),
    ) -> None:
        super().__init__()
        for name, value in (("action_dim", action_dim), ("chunk_size", chunk_size)):
            check_positive_int(type(self).__name__, name, value)
        self.action_dim = action_dim
        self.chunk_size = chunk_size
        self.keys = keys
        self.in_keys = keys.present
        self.optional_in_keys: list[NestedKey] = []
        self._policy_space: PolicySpace | None = None

    @property
    def policy_space(self) -> PolicySpace | None:
        """The space of its states and actions; None = not trained yet."""
        return self._policy_space

    @policy_space.setter
    def policy_space(self, space: PolicySpace | None) -> None:
        self._policy_space = space

    @abstractmethod
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the head emits into the tensordict and return it."""

    @property
    def has_likelihood(self) -> bool:
        """True = the policy writes the log-probability of what it samples."""
        return False

    def make_critic(self) -> TensorDictModuleBase | None:
        """Return an untrained critic that writes ``state_value``; None = there is none.

        It shares no trainable weight with the policy.
        """
        return None

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> VLAWrapperBase | None:
        """Return a policy with log-probabilities that starts from these weights.

        None = this class knows none. Call :func:`~torchrl_vla.policies.to_stochastic`,
        which puts a Gaussian around a policy that predicts a chunk.

        Keyword Args:
            initial_std: first standard deviation of a Gaussian head, in model space.
            flow_noise: scale of a flow's :class:`FlowSDENoise`.
        """
        return None

    def make_environment_transform(self) -> Compose:
        """Return what the policy needs in its environment from step to step."""
        return Compose()

    def make_target_transform(self) -> Transform | None:
        """Return what turns chunks into this head's targets; None = chunks are."""
        return None

    def to_folder(self, folder: str | Path) -> None:
        """Write the policy: class, constructor arguments, weights, instructions.

        Raises:
            SchemaError: it could not be read back; nothing is written then.
        """
        write_policy(folder, self)

    def check_writable(self) -> None:
        """Refuse what :meth:`to_folder` could not write.

        Raises:
            SchemaError: says why.
        """
        check_writable(self)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a policy of this class, on the CPU, that :meth:`to_folder` wrote.

        Raises:
            FileNotFoundError: the folder holds no complete policy.
            SchemaError: it holds a policy of another class, or its weights do not fit.
        """
        return read_policy(folder, cls)

    def _check_shape(
        self, value: Tensor, method: str, batch: tuple[int, ...], *vocab: int
    ) -> Tensor:
        expected = (*batch, self.chunk_size, self.action_dim, *vocab)
        if value.shape != expected:
            letters = "[*B, H, A, V]" if vocab else "[*B, H, A]"
            raise SchemaError(
                f"{type(self).__name__}: expected {letters} = {list(expected)} from "
                f"{method}, got {list(value.shape)}. The policy was built with "
                f"chunk_size={self.chunk_size} and action_dim={self.action_dim}."
            )
        return value


@_takes_torchrls_keys
class ContinuousVLAWrapper(VLAWrapperBase):
    """Predict a chunk of continuous actions.

    Abstract: a subclass implements :meth:`predict_chunk`.

    **Reads** image, state and instruction. **Writes** ``action_chunk`` float
    ``[*B, H, A]``.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        keys: observation entries that the policy reads.
        chunk_key: where the chunk is written.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Still(ContinuousVLAWrapper):
        ...     def predict_chunk(self, tensordict):
        ...         return torch.zeros(*tensordict.batch_size, 4, 2)
        >>> policy = Still(action_dim=2, chunk_size=4)
        >>> policy(TensorDict(batch_size=[3]))["action_chunk"].shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        keys: ObservationKeys = ObservationKeys(),
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
    ) -> None:
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, keys=keys)
        self.chunk_key = unravel_key(chunk_key)
        self.out_keys = [self.chunk_key]

    @abstractmethod
    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk."""
        chunk = self.predict_chunk(tensordict)
        chunk = self._check_shape(chunk, "predict_chunk", tensordict.batch_size)
        return tensordict.set(self.chunk_key, chunk)
