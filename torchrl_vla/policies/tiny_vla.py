"""Small vision-language-action policies that train on two CPU cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.backbone import TinyBackbone
from torchrl_vla.policies.base import ContinuousVLAWrapper, TokenVLAWrapper
from torchrl_vla.policies.folder import read_policy, write_policy
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
)
from torchrl_vla.tokenizers import ActionTokenizerBase

_CONFIGURABLE = (
    "action_dim",
    "chunk_size",
    "state_dim",
    "cameras",
    "hidden",
    "depth",
    "text_dim",
    "text_max_bytes",
    "image_key",
    "state_key",
    "instruction_key",
)


class _TinyPolicy:
    """What the two tiny policies share: a backbone, its instructions, a folder."""

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

    def to_folder(self, folder: str | Path) -> None:
        """Write ``config.json``, ``weights.pt`` and ``instructions.json``.

        Raises:
            ValueError: the policy has not seen a state yet (``state_dim=None``).
        """
        config = {**self.config, "state_dim": self._state_dim()}
        write_policy(folder, self, config, self.instructions)

    def _state_dim(self) -> int | None:
        return None if self.state_key is None else self.backbone.state.in_features


class TinyVLA(_TinyPolicy, ContinuousVLAWrapper):
    """Predict a chunk of continuous actions from images, state and an instruction.

    About 0.6 million weights that really use all three inputs. **Reads** uint8 (or
    float in 0..1) images ``[*B, C, h, w]``, float state ``[*B, S]``, text or int64
    ids ``[*B]``; **writes** ``action_chunk`` float ``[*B, H, A]``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        state_dim: ``S``; None = taken from the first call, until which the policy has
            no complete parameters to give an optimizer.
        cameras: names of the cameras under ``image_key``; None = one image lies there
            itself; ``()`` = the policy does not look.
        instructions: table for instruction ids; text needs none.
        hidden: width of the trunk.
        depth: residual blocks of the trunk.
        text_dim: size of an instruction's encoding.
        text_max_bytes: longest instruction in UTF-8 bytes.
        image_key: where the images are.
        state_key: where the state is; None = is not read.
        instruction_key: where the instruction is.

    Raises:
        SchemaError: an image is not what was declared (layout, range, cameras).
        UnknownInstructionError: an id is not in ``instructions``.
        MissingKeyError: an input is missing.

    Examples:
        >>> import torch
        >>> from tensordict import NonTensorStack, TensorDict
        >>> policy = TinyVLA(action_dim=7, chunk_size=4)
        >>> data = TensorDict(
        ...     {
        ...         "observation": {
        ...             "image": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        ...             "state": torch.zeros(2, 5),
        ...         },
        ...         "language_instruction": NonTensorStack("pick", "place"),
        ...     },
        ...     batch_size=[2],
        ... )
        >>> policy(data)["action_chunk"].shape
        torch.Size([2, 4, 7])
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        state_dim: int | None = None,
        cameras: tuple[str, ...] | None = None,
        instructions: InstructionTable | None = None,
        hidden: int = 256,
        depth: int = 2,
        text_dim: int = 64,
        text_max_bytes: int = 128,
        image_key: NestedKey = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        keys = _keys(cameras, image_key, state_key, instruction_key)
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, **keys)
        self.backbone = TinyBackbone(
            chunk_size * action_dim,
            cameras=cameras,
            state_dim=state_dim,
            hidden=hidden,
            depth=depth,
            text_dim=text_dim,
            text_max_bytes=text_max_bytes,
            **keys,
        )
        self.config = _config(locals())
        self.instructions = instructions

    @classmethod
    def from_folder(cls, folder: str | Path) -> TinyVLA:
        """Read a policy that :meth:`to_folder` wrote."""
        return read_policy(folder, cls)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""
        flat = self.backbone(tensordict)
        return flat.unflatten(-1, (self.chunk_size, self.action_dim))


class TinyTokenVLA(_TinyPolicy, TokenVLAWrapper):
    """Predict a chunk of action tokens from images, state and an instruction.

    :class:`TinyVLA` with one categorical distribution per action dimension and step
    in place of a number. **Reads** what TinyVLA reads; **writes** ``action_tokens``,
    ``log_probs`` and the decoded ``action_chunk``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        action_tokenizer: gives the vocabulary and decodes.
        **options: the other arguments of :class:`TinyVLA`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> tokenizer = UniformActionTokenizer(16, low=-1.0, high=1.0)
        >>> policy = TinyTokenVLA(
        ...     action_dim=2, chunk_size=4, action_tokenizer=tokenizer, cameras=()
        ... )
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["action_tokens"].shape, data["log_probs"].shape
        (torch.Size([4, 2]), torch.Size([]))
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        state_dim: int | None = None,
        cameras: tuple[str, ...] | None = None,
        instructions: InstructionTable | None = None,
        hidden: int = 256,
        depth: int = 2,
        text_dim: int = 64,
        text_max_bytes: int = 128,
        image_key: NestedKey = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        keys = _keys(cameras, image_key, state_key, instruction_key)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            **keys,
        )
        self.backbone = TinyBackbone(
            chunk_size * action_dim * self.vocab_size,
            cameras=cameras,
            state_dim=state_dim,
            hidden=hidden,
            depth=depth,
            text_dim=text_dim,
            text_max_bytes=text_max_bytes,
            **keys,
        )
        self.config = _config(locals())
        self.instructions = instructions

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, action_tokenizer: ActionTokenizerBase
    ) -> TinyTokenVLA:
        """Read a policy that :meth:`to_folder` wrote.

        Args:
            folder: where it was written.

        Keyword Args:
            action_tokenizer: the tokenizer that the policy was trained with.

        Raises:
            ValueError: the tokenizer maps tokens to other actions than that one.
        """
        return read_policy(folder, cls, action_tokenizer=action_tokenizer)

    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""
        shape = (self.chunk_size, self.action_dim, self.vocab_size)
        return self.backbone(tensordict).unflatten(-1, shape)


def _keys(
    cameras: tuple[str, ...] | None,
    image_key: NestedKey,
    state_key: NestedKey | None,
    instruction_key: NestedKey,
) -> dict[str, NestedKey | None]:
    """The keys that the policy reads: no images for a policy without cameras."""
    return {
        "image_key": None if cameras == () else image_key,
        "state_key": state_key,
        "instruction_key": instruction_key,
    }


def _config(arguments: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a JSON file can hold."""
    return {name: arguments[name] for name in _CONFIGURABLE}
