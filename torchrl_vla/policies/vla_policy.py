"""What every vision-language-action policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SchemaError,
    check_positive_int,
)


class VLAWrapperBase(TensorDictModuleBase, ABC):
    """Map images, state and an instruction to the next ``H`` actions.

    Abstract: a policy is a :class:`ContinuousVLAWrapper`, which emits a chunk, or a
    :class:`StochasticVLAWrapper`, which chooses one and says how likely it was. Any
    number of leading batch dimensions is allowed everywhere, and the output is in the
    space that the policy was trained in: transforms bring it to the robot.
    ``in_keys`` must be there; ``optional_in_keys`` are read where they are.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        image_key: camera image, or sub-tensordict of cameras; None = does not look.
        state_key: proprioception; None = is not read.
        instruction_key: text, or int64 ids.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        super().__init__()
        for name, value in (("action_dim", action_dim), ("chunk_size", chunk_size)):
            check_positive_int(type(self).__name__, name, value)
        self.action_dim = action_dim
        self.chunk_size = chunk_size
        self.image_key = None if image_key is None else unravel_key(image_key)
        self.state_key = None if state_key is None else unravel_key(state_key)
        self.instruction_key = unravel_key(instruction_key)
        keys = (self.image_key, self.state_key, self.instruction_key)
        self.in_keys = [key for key in keys if key is not None]
        self.optional_in_keys: list[NestedKey] = []

    @abstractmethod
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the head emits into the tensordict and return it."""

    def _check_shape(
        self, value: Tensor, method: str, batch: torch.Size, *vocab: int
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


class ContinuousVLAWrapper(VLAWrapperBase):
    """Emit a chunk of continuous actions.

    Abstract: a subclass implements :meth:`predict_chunk`.

    **Reads** image, state and instruction. **Writes** ``action_chunk`` float
    ``[*B, H, A]``.

    Keyword Args:
        action_dim: see :class:`VLAWrapperBase`, as for the other inputs.
        chunk_size: see there.
        chunk_key: where the chunk is written.
        image_key: see there.
        state_key: see there.
        instruction_key: see there.

    Examples:
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
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            image_key=image_key,
            state_key=state_key,
            instruction_key=instruction_key,
        )
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
