"""Element tokenizers read as sequences, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.chunk_tokenizer import ChunkActionTokenizer
from torchrl_vla.tokenizers.token_grammar import PositionGrammar


class FlatActionTokenizer(ChunkActionTokenizer):
    """Write the tokens of a chunk's numbers as a sequence: step by step, each's ``A``.

    What RT-2 and OpenVLA generate, made of any tokenizer of single numbers.

    Args:
        tokenizer: of single numbers, such as
            :class:`~torchrl_vla.tokenizers.UniformActionTokenizer`.
        chunk_size: ``H``.
        action_dim: ``A``.

    Examples:
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> bins = UniformActionTokenizer(4, low=-1.0, high=1.0)
        >>> tokenizer = FlatActionTokenizer(bins, 2, 2)
        >>> tokenizer.encode(torch.tensor([[-0.9, -0.1], [0.1, 0.9]]))
        tensor([0, 1, 2, 3])
        >>> tokenizer.first_steps
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self, tokenizer: ActionTokenizerBase, chunk_size: int, action_dim: int
    ) -> None:
        super().__init__(chunk_size, action_dim)
        self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer of single numbers."""
        return self.tokenizer.vocab_size

    @property
    def is_action_token(self) -> Tensor | None:
        """Of the tokenizer of single numbers."""
        return self.tokenizer.is_action_token

    @property
    def sequence_length(self) -> int:
        """``L = H * A``."""
        return self.chunk_size * self.action_dim

    @property
    def first_steps(self) -> Tensor:
        """The step of each token."""
        return torch.arange(self.chunk_size).repeat_interleave(self.action_dim)

    def encode(self, actions: Tensor) -> Tensor:
        """Turn chunks ``[*B, H, A]`` into tokens ``[*B, H * A]``."""
        self._check_chunks(actions)
        return self.tokenizer.encode(actions).flatten(-2)

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``[*B, H * A]`` into chunks."""
        self._check_sequences(tokens)
        chunk = tokens.unflatten(-1, (self.chunk_size, self.action_dim))
        return self.tokenizer.decode(chunk)

    def make_grammar(self) -> PositionGrammar:
        """Return a grammar that allows every token of an action at each position."""
        actions = self.is_action_token
        if actions is None:
            actions = torch.ones(self.vocab_size, dtype=torch.bool)
        return PositionGrammar(actions.cpu().expand(self.sequence_length, -1))


def as_chunk_tokenizer(
    tokenizer: ActionTokenizerBase, chunk_size: int, action_dim: int
) -> ChunkActionTokenizer:
    """Return a tokenizer of whole chunks: itself, or its numbers as a sequence.

    Args:
        tokenizer: any.
        chunk_size: ``H``.
        action_dim: ``A``.

    Raises:
        ValueError: it is of chunks of another shape.
    """
    match tokenizer:
        case ChunkActionTokenizer():
            own = (tokenizer.chunk_size, tokenizer.action_dim)
            if own != (chunk_size, action_dim):
                raise ValueError(
                    f"{type(tokenizer).__name__}: expected chunks [H, A] = "
                    f"{[chunk_size, action_dim]}, those of the policy, got a tokenizer "
                    f"of {list(own)}. Fit one for the policy's chunks."
                )
            return tokenizer
    return FlatActionTokenizer(tokenizer, chunk_size, action_dim)
