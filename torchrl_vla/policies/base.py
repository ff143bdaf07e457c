"""What every vision-language-action policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor
from torch.distributions import Categorical, Independent

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_TOKENS_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    LOG_PROBS_KEY,
    STATE_KEY,
    SchemaError,
)
from torchrl_vla.tokenizers import ActionTokenizerBase


class VLAWrapperBase(TensorDictModuleBase, ABC):
    """Map images, state and an instruction to the next ``H`` actions.

    Abstract: a policy is a :class:`ContinuousVLAWrapper` or a
    :class:`TokenVLAWrapper`, by what its head emits. Any number of leading batch
    dimensions is allowed everywhere.

    Args:
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
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{type(self).__name__}: expected a positive int at argument "
                    f"{name!r}, got {value!r}."
                )
        self.action_dim = action_dim
        self.chunk_size = chunk_size
        self.image_key = image_key
        self.state_key = state_key
        self.instruction_key = instruction_key
        keys = (image_key, state_key, instruction_key)
        self.in_keys = [key for key in keys if key is not None]

    @abstractmethod
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the head emits into the tensordict and return it."""

    def _check_shape(self, value: Tensor, name: str, expected: tuple) -> Tensor:
        if tuple(value.shape) != tuple(expected):
            raise SchemaError(
                f"{type(self).__name__}: expected {name} to return shape "
                f"{tuple(expected)}, got {tuple(value.shape)}."
            )
        return value


class ContinuousVLAWrapper(VLAWrapperBase):
    """Emit a chunk of continuous actions.

    **Reads** image, state and instruction; **writes** ``action_chunk`` float
    ``[*B, H, A]``, in the space that the policy was trained in.

    Args:
        chunk_key: where the chunk is written.
        **keys: see :class:`VLAWrapperBase`.
    """

    def __init__(self, *, chunk_key: NestedKey = ACTION_CHUNK_KEY, **keys) -> None:
        super().__init__(**keys)
        self.chunk_key = chunk_key
        self.out_keys = [chunk_key]

    @abstractmethod
    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk."""
        shape = (*tensordict.batch_size, self.chunk_size, self.action_dim)
        chunk = self._check_shape(
            self.predict_chunk(tensordict), "predict_chunk", shape
        )
        return tensordict.set(self.chunk_key, chunk)


class TokenVLAWrapper(VLAWrapperBase):
    """Emit a chunk of discrete action tokens with their log-probability.

    The log-probability is that of the whole chunk (the sum over ``H`` and ``A``), so
    ``ClipPPOLoss`` takes the policy as it is. ``get_dist`` and ``log_prob`` always
    run the network with its current weights; logits or log-probs that lie in the
    tensordict are never taken for them. Tokens are the most likely ones unless the
    interaction type is ``RANDOM`` (``set_exploration_type``), as in collectors.

    **Reads** image, state and instruction; **writes** ``action_tokens`` int64
    ``[*B, H, A]``, ``log_probs`` float ``[*B]``, ``action_chunk`` float
    ``[*B, H, A]`` (decoded by the tokenizer).

    Args:
        action_tokenizer: tokens to actions and back.
        chunk_key: where the decoded chunk is written.
        tokens_key: where the tokens are written.
        log_probs_key: where their log-probability is written.
        **keys: see :class:`VLAWrapperBase`.
    """

    def __init__(
        self,
        *,
        action_tokenizer: ActionTokenizerBase,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        tokens_key: NestedKey = ACTION_TOKENS_KEY,
        log_probs_key: NestedKey = LOG_PROBS_KEY,
        **keys,
    ) -> None:
        super().__init__(**keys)
        self.action_tokenizer = action_tokenizer
        self.chunk_key = chunk_key
        self.tokens_key = tokens_key
        self.log_probs_key = log_probs_key
        self.out_keys = [chunk_key, tokens_key, log_probs_key]

    @property
    def vocab_size(self) -> int:
        """``V``, the number of tokens of one dimension of one action."""
        return self.action_tokenizer.vocab_size

    @abstractmethod
    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""

    def get_dist(self, tensordict: TensorDictBase) -> Independent:
        """Return the distribution of a chunk's tokens under the current weights."""
        batch = tensordict.batch_size
        shape = (*batch, self.chunk_size, self.action_dim, self.vocab_size)
        logits = self._check_shape(
            self.predict_logits(tensordict), "predict_logits", shape
        )
        return Independent(Categorical(logits=logits, validate_args=False), 2, False)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability ``[*B]`` of the tokens in the tensordict."""
        return self.get_dist(tensordict).log_prob(tensordict.get(self.tokens_key))

    def token_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability of each token, ``[*B, H, A]``."""
        dist = self.get_dist(tensordict).base_dist
        return dist.log_prob(tensordict.get(self.tokens_key))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose tokens; write them, their log-probability and the actions."""
        dist = self.get_dist(tensordict)
        if interaction_type() == InteractionType.RANDOM:
            tokens = dist.sample()
        else:
            tokens = dist.base_dist.logits.argmax(-1)
        tensordict.set(self.tokens_key, tokens)
        tensordict.set(self.log_probs_key, dist.log_prob(tokens))
        with torch.no_grad():
            chunk = self.action_tokenizer.decode(tokens)
        return tensordict.set(self.chunk_key, chunk)
