"""What every vision-language-action policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.token_distribution import TokenDistribution
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_TOKENS_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    LOG_PROBS_KEY,
    STATE_KEY,
    MissingKeyError,
    SchemaError,
    check_positive_int,
)
from torchrl_vla.tokenizers import ActionTokenizerBase


class VLAWrapperBase(TensorDictModuleBase, ABC):
    """Map images, state and an instruction to the next ``H`` actions.

    Abstract: a policy is a :class:`ContinuousVLAWrapper` or a
    :class:`TokenVLAWrapper`, by what its head emits. Any number of leading batch
    dimensions is allowed everywhere, and the output is in the space that the policy
    was trained in: transforms bring it to the robot.

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


class TokenVLAWrapper(VLAWrapperBase):
    """Emit a chunk of discrete action tokens with their log-probability.

    Abstract: a subclass implements :meth:`predict_logits`. The log-probability is that
    of the whole chunk (the sum over ``H`` and ``A``), so ``ClipPPOLoss`` takes the
    policy as it is. ``get_dist`` and ``log_prob`` always run the network with its
    current weights; logits or log-probs that lie in the tensordict are never taken for
    them. Tokens are the most likely ones unless the interaction type is ``RANDOM``
    (``set_interaction_type``, or the collector's ``exploration_type``).

    **Reads** image, state and instruction. **Writes** ``action_tokens`` int64
    ``[*B, H, A]``, ``log_probs`` float ``[*B]``, ``action_chunk`` float
    ``[*B, H, A]`` (decoded by the tokenizer).

    Keyword Args:
        action_dim: see :class:`VLAWrapperBase`, as for the other inputs.
        chunk_size: see there.
        action_tokenizer: tokens to actions and back.
        chunk_key: where the decoded chunk is written.
        tokens_key: where the tokens are written.
        log_probs_key: where their log-probability is written.
        image_key: see there.
        state_key: see there.
        instruction_key: see there.

    Raises:
        SchemaError: tokens or logits have an unexpected shape.
        TokenError: a token in the tensordict is none of the tokenizer's.
        ValueError: the interaction type asks for a mean or median of tokens.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        tokens_key: NestedKey = ACTION_TOKENS_KEY,
        log_probs_key: NestedKey = LOG_PROBS_KEY,
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
        self.action_tokenizer = action_tokenizer
        self.chunk_key = unravel_key(chunk_key)
        self.tokens_key = unravel_key(tokens_key)
        self.log_probs_key = unravel_key(log_probs_key)
        self.out_keys = [self.chunk_key, self.tokens_key, self.log_probs_key]

    @property
    def vocab_size(self) -> int:
        """``V``, the number of tokens of one dimension of one action."""
        return self.action_tokenizer.vocab_size

    @abstractmethod
    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""

    def get_dist(self, tensordict: TensorDictBase) -> TokenDistribution:
        """Return the distribution of a chunk's tokens under the current weights."""
        logits = self.predict_logits(tensordict)
        batch = tensordict.batch_size
        self._check_shape(logits, "predict_logits", batch, self.vocab_size)
        return TokenDistribution(logits)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability ``[*B]`` of the tokens in the tensordict."""
        return self.token_log_probs(tensordict).sum((-2, -1))

    def token_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability of each token, ``[*B, H, A]``."""
        tokens = tensordict.get(self.tokens_key, None)
        if tokens is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected tokens [*B, H, A] at "
                f"{self.tokens_key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Call the policy to "
                "choose some, or name their key with tokens_key."
            )
        return self.get_dist(tensordict).token_log_probs(tokens)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose tokens; write them, their log-probability and the actions."""
        dist = self.get_dist(tensordict)
        tokens = self._choose(dist)
        tensordict.set(self.tokens_key, tokens)
        tensordict.set(self.log_probs_key, dist.log_prob(tokens))
        with torch.no_grad():
            chunk = self.action_tokenizer.decode(tokens)
        return tensordict.set(self.chunk_key, chunk)

    def _choose(self, dist: TokenDistribution) -> Tensor:
        kind = interaction_type()
        if kind == InteractionType.RANDOM:
            return dist.sample()
        if kind in (InteractionType.MEAN, InteractionType.MEDIAN):
            raise ValueError(
                f"{type(self).__name__}: expected interaction type RANDOM, MODE or "
                f"DETERMINISTIC, got {kind.name}. Tokens have no mean: use MODE."
            )
        return dist.mode
