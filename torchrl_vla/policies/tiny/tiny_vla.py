"""Small vision-language-action policies that train on two CPU cores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.policy_folder import read_policy
from torchrl_vla.policies.tiny.tiny_policy import (
    TinyPolicy,
    json_config,
    make_backbone,
    read_keys,
)
from torchrl_vla.policies.tokens.token_policy import TokenVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
)
from torchrl_vla.tokenizers import ActionTokenizerBase


class TinyVLA(TinyPolicy, ContinuousVLAWrapper):
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
        keys = read_keys(cameras, image_key, state_key, instruction_key)
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, **keys)
        self.backbone = make_backbone(chunk_size * action_dim, locals(), keys)
        self.config = json_config(locals())
        self.instructions = instructions

    @classmethod
    def from_folder(cls, folder: str | Path) -> TinyVLA:
        """Read a policy that :meth:`to_folder` wrote."""
        return read_policy(folder, cls)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""
        flat = self.backbone(tensordict)
        return flat.unflatten(-1, (self.chunk_size, self.action_dim))


class TinyTokenVLA(TinyPolicy, TokenVLAWrapper):
    """Predict a chunk of action tokens from images, state and an instruction.

    :class:`TinyVLA` with one categorical distribution per action dimension and step
    in place of a number. **Reads** what TinyVLA reads; **writes** ``action_tokens``,
    ``log_probs`` and the decoded ``action_chunk``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        action_tokenizer: gives the vocabulary and decodes.
        sampling: temperature and truncation; see :class:`TokenVLAWrapper`.
        allowed_tokens: which tokens may be chosen; see there.
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
        sampling: TokenSampling | None = None,
        allowed_tokens: Tensor | None = None,
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
        keys = read_keys(cameras, image_key, state_key, instruction_key)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            sampling=sampling,
            allowed_tokens=allowed_tokens,
            **keys,
        )
        out_dim = chunk_size * action_dim * self.vocab_size
        self.backbone = make_backbone(out_dim, locals(), keys)
        self.config = json_config(locals())
        if allowed_tokens is not None:
            self.config["allowed_tokens"] = allowed_tokens.tolist()
        self.instructions = instructions

    def to_folder(self, folder: str | Path) -> None:
        """Write the policy, ``sampling`` as it is now, but not the tokenizer.

        Raises:
            ValueError: the policy has not seen a state yet (``state_dim=None``).
        """
        if self.sampling is not None:
            self.config["sampling"] = asdict(self.sampling)
        else:
            self.config.pop("sampling", None)
        super().to_folder(folder)

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
        parsers = {
            "sampling": lambda value: TokenSampling(**value),
            "allowed_tokens": torch.tensor,
        }
        return read_policy(folder, cls, parsers, action_tokenizer=action_tokenizer)

    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""
        shape = (self.chunk_size, self.action_dim, self.vocab_size)
        return self.backbone(tensordict).unflatten(-1, shape)
