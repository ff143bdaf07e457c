"""Base class of policies that write action tokens one after the other."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.policies.tokens.sequence_distribution import (
    TokenDecoder,
    TokenSequenceDistribution,
)
from torchrl_vla.policies.tokens.token_policy import check_interaction
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_TOKENS_KEY, ObservationKeys
from torchrl_vla.tokenizers import ActionTokenizerBase, as_chunk_tokenizer
from torchrl_vla.transforms import ActionTokenizerTransform


class TokenSequenceVLAWrapper(StochasticVLAWrapper):
    """Emit a chunk as a sequence of action tokens that always decodes.

    Abstract: a subclass implements :meth:`make_decoder`. Each token is drawn from those
    that the tokenizer's grammar allows after the ones before it, so that none can be
    malformed; ``log_probs`` are of exactly this distribution, see
    :class:`TokenSequenceDistribution`.

    **Reads** image, state and instruction. **Writes** ``action_tokens`` int64
    ``[*B, L]``, ``log_probs`` float ``[*B]``, ``element_log_probs`` float ``[*B, L]``
    and ``action_chunk`` float ``[*B, H, A]`` (decoded, without a gradient).

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        action_tokenizer: of chunks (FAST, BEAST); or of numbers, whose tokens are then
            written step by step.
        sampling: temperature and truncation, for sampling and for the log-probability
            alike; may be set later.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes; ``sample`` are the tokens.

    Raises:
        SchemaError: tokens have an unexpected shape.
        TokenError: a sequence in the tensordict is malformed.
        ValueError: the tokenizer is of other chunks, or the interaction type asks for a
            mean or median of tokens.
    """

    default_sample_key = ACTION_TOKENS_KEY
    cloning_loss = "tokens"

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        sampling: TokenSampling | None = None,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            keys=keys,
            output_keys=output_keys,
        )
        self.action_tokenizer = as_chunk_tokenizer(
            action_tokenizer, chunk_size, action_dim
        )
        self.sampling = sampling
        self.grammar = self.action_tokenizer.make_grammar()

    @property
    def vocab_size(self) -> int:
        """``V``, the number of action tokens."""
        return self.action_tokenizer.vocab_size

    @abstractmethod
    def make_decoder(self, tensordict: TensorDictBase) -> TokenDecoder[Any]:
        """Encode the observations, and return what gives the tokens' logits."""

    def get_dist(self, tensordict: TensorDictBase) -> TokenSequenceDistribution[Any]:
        """Return the distribution of a chunk's tokens under the current weights."""
        return TokenSequenceDistribution(
            self.make_decoder(tensordict),
            self.action_tokenizer,
            tensordict.batch_size,
            sampling=self.sampling,
            grammar=self.grammar,
        )

    def token_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability ``[*B, L]`` of each token.

        ``TokenBCLoss`` calls it. Clone without ``top_k`` and ``top_p``: a token that
        they cut off has no gradient, and cloning does not make it less likely.
        """
        return self.element_log_probs(tensordict)

    def counted_tokens(self, tokens: Tensor, steps: Tensor) -> Tensor:
        """Return which tokens ``[*B, L]`` count where steps ``[*B, H]`` do, bool."""
        return self.action_tokenizer.counted(tokens, steps)

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
