"""Base class of policies with a token head."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.policies.tokens.token_distribution import TokenDistribution
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_TOKENS_KEY,
    ObservationKeys,
    TokenError,
)
from torchrl_vla.tokenizers import ActionTokenizerBase
from torchrl_vla.transforms import ActionTokenizerTransform


class TokenVLAWrapper(StochasticVLAWrapper):
    """Emit a chunk of discrete action tokens with their log-probability.

    Abstract: a subclass implements :meth:`predict_logits`. The log-probability is that
    of the whole chunk (the sum over ``H`` and ``A``), so ``ClipPPOLoss`` takes the
    policy as it is. Tokens are the most likely ones unless the interaction type is
    ``RANDOM``. Tokens that the tokenizer cannot decode (the words in front of a
    vocabulary's tail) are never sampled and have no gradient.

    **Reads** image, state and instruction. **Writes** ``action_tokens`` int64
    ``[*B, H, A]``, ``log_probs`` float ``[*B]``, ``element_log_probs`` float
    ``[*B, H, A]``, ``action_chunk`` float ``[*B, H, A]`` (decoded by the tokenizer,
    without a gradient).

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        action_tokenizer: tokens to actions and back.
        sampling: temperature and truncation, for sampling and for the log-probability
            alike; may be set later.
        allowed_tokens: bool ``[V]`` or ``[A, V]``, True = may be sampled; None = all
            that the tokenizer decodes.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes; ``sample`` are the tokens.

    Raises:
        SchemaError: tokens or logits have an unexpected shape.
        TokenError: a token in the tensordict is none of the tokenizer's, or the mask
            leaves a dimension without a token.
        ValueError: the interaction type asks for a mean or median of tokens.
    """

    default_sample_key = ACTION_TOKENS_KEY
    cloning_loss = "tokens"
    allowed_tokens: Tensor | None

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        sampling: TokenSampling | None = None,
        allowed_tokens: Tensor | None = None,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            keys=keys,
            output_keys=output_keys,
        )
        self.action_tokenizer = action_tokenizer
        self.sampling = sampling
        mask = self._mask(allowed_tokens)
        self.register_buffer("allowed_tokens", mask, persistent=False)

    @property
    def vocab_size(self) -> int:
        """``V``, the number of tokens of one dimension of one action."""
        return self.action_tokenizer.vocab_size

    @property
    def tokens_key(self) -> NestedKey:
        """Where the tokens are: they are the policy's sample."""
        return self.sample_key

    @abstractmethod
    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""

    def get_dist(self, tensordict: TensorDictBase) -> TokenDistribution:
        """Return the distribution of a chunk's tokens under the current weights."""
        logits = self.predict_logits(tensordict)
        batch = tensordict.batch_size
        self._check_shape(logits, "predict_logits", batch, self.vocab_size)
        return TokenDistribution(
            logits, self.sampling, allowed_tokens=self.allowed_tokens
        )

    def token_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability of each token: ``element_log_probs``.

        ``TokenBCLoss`` calls it. Clone without ``top_k`` and ``top_p``: a token that
        they cut off has no gradient, and cloning does not make it less likely.
        """
        return self.element_log_probs(tensordict)

    def make_target_transform(self) -> ActionTokenizerTransform:
        """Return what turns chunks into ``action_tokens``."""
        return ActionTokenizerTransform(self.action_tokenizer, in_key=ACTION_CHUNK_KEY)

    def decode(self, sample: Tensor) -> Tensor:
        """Return the actions that tokens stand for."""
        with torch.no_grad():
            return self.action_tokenizer.decode(sample)

    def _choose(self, dist: ChunkDistribution, noise_seeds: Tensor | None) -> Tensor:
        check_interaction(type(self).__name__)
        return super()._choose(dist, noise_seeds)

    def _mask(self, allowed_tokens: Tensor | None) -> Tensor | None:
        """Return which tokens may be sampled, of those that are actions."""
        actions = self.action_tokenizer.is_action_token
        if allowed_tokens is None:
            return actions
        shapes = (self.vocab_size,), (self.action_dim, self.vocab_size)
        if allowed_tokens.dtype != torch.bool or allowed_tokens.shape not in shapes:
            raise TokenError(
                f"{type(self).__name__}: expected a bool [V] = {list(shapes[0])} or "
                f"[A, V] = {list(shapes[1])} at argument 'allowed_tokens', got "
                f"{allowed_tokens.dtype} {list(allowed_tokens.shape)}."
            )
        if actions is not None:
            allowed_tokens = allowed_tokens & actions.to(allowed_tokens.device)
        if not allowed_tokens.any(-1).all():
            raise TokenError(
                f"{type(self).__name__}: expected an action token for each dimension "
                "at argument 'allowed_tokens', got a row that allows none."
            )
        return allowed_tokens


def check_interaction(caller: str) -> None:
    """Refuse to take a mean of tokens.

    Raises:
        ValueError: the interaction type asks for a mean or median.
    """
    kind = interaction_type()
    if kind in (InteractionType.MEAN, InteractionType.MEDIAN):
        raise ValueError(
            f"{caller}: expected interaction type RANDOM, MODE or DETERMINISTIC, got "
            f"{kind.name}. Tokens have no mean: use MODE."
        )
