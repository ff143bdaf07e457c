"""Base class of action tokenizers that encode a whole chunk as one sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from torchrl_vla.schema import TokenError, check_positive_int
from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.token_grammar import TokenGrammar


class ChunkActionTokenizer(ActionTokenizerBase):
    """Map chunks ``[*B, H, A]`` to sequences of tokens ``[*B, L]`` and back.

    Abstract: a token stands for a part of the whole chunk (a frequency, a control
    point), not for one number of one action. ``decode`` takes every sequence that
    :meth:`grammar` allows; any other raises with its position. A sequence that is
    shorter than ``L`` is filled with :attr:`end_token`, which is not part of the
    action: it has probability 1 and no gradient.

    Note:
        ``encode`` undoes ``decode`` only for sequences that it wrote: of the sequences
        that stand for one chunk it writes one.

    Args:
        chunk_size: ``H``.
        action_dim: ``A``.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, chunk_size: int, action_dim: int) -> None:
        super().__init__()
        for name, value in (("chunk_size", chunk_size), ("action_dim", action_dim)):
            check_positive_int(type(self).__name__, name, value)
        self.chunk_size = chunk_size
        self.action_dim = action_dim

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """``L``, the longest sequence that ``encode`` can write."""

    @property
    def end_token(self) -> int | None:
        """What fills a sequence behind its end; None = all sequences are full."""
        return None

    @property
    @abstractmethod
    def first_steps(self) -> Tensor:
        """First step of the chunk that each place of a sequence moves, ``[L]``.

        Tokens of later steps can be left out of a likelihood where a chunk was stopped
        before; they come later in the sequence.
        """

    @abstractmethod
    def encode(self, actions: Tensor) -> Tensor:
        """Turn chunks ``[*B, H, A]`` into tokens, int64 ``[*B, L]``."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``[*B, L]`` into chunks, float32 ``[*B, H, A]``."""

    @abstractmethod
    def make_grammar(self) -> TokenGrammar:
        """Return which tokens may follow a partial sequence."""

    def is_token(self, tokens: Tensor) -> Tensor:
        """Return a mask of tokens, True = part of the action, False = past the end."""
        if self.end_token is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return tokens != self.end_token

    def counted(self, tokens: Tensor, steps: Tensor) -> Tensor:
        """Return which tokens count where these steps of the chunk do.

        A token counts if it is part of the action and moves a step that is not behind
        the last one that counts. The others come later in the sequence, so that what
        is left is the likelihood of the tokens that mattered.

        Args:
            tokens: int64 ``[*B, L]``.
            steps: bool ``[*B, H]``, True = executed, or not padded.

        Returns:
            bool ``[*B, L]``.
        """
        place = torch.arange(1, steps.shape[-1] + 1, device=steps.device)
        behind = (steps * place).amax(-1, keepdim=True)
        first = self.first_steps.to(tokens.device)
        return self.is_token(tokens) & (first < behind)

    def _check_chunks(self, actions: Tensor) -> None:
        if actions.shape[-2:] != (self.chunk_size, self.action_dim):
            raise TokenError(
                f"{type(self).__name__}.encode: expected chunks [*B, H, A] = [..., "
                f"{self.chunk_size}, {self.action_dim}], got {list(actions.shape)}. "
                "Fit a tokenizer for this chunk size and robot."
            )
        self._check_actions(actions)

    def _check_sequences(self, tokens: Tensor) -> None:
        self._check_dtype(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] != self.sequence_length:
            raise TokenError(
                f"{type(self).__name__}.decode: expected sequences [*B, L] = [..., "
                f"{self.sequence_length}], got {list(tokens.shape)}. Pass whole "
                "sequences, with their end tokens."
            )


def read_chunks(caller: str, chunks: Tensor | Iterable[Tensor]) -> Tensor:
    """Return chunks as one float64 tensor ``[N, H, A]``.

    Args:
        caller: opens the error message.
        chunks: ``[N, H, A]``, or an iterable of ``[H, A]`` or ``[n, H, A]``.

    Raises:
        TokenError: there are none, they have different shapes, or one isn't finite.
    """
    parts = [chunk.detach().to("cpu", torch.float64) for chunk in chunks]
    shapes = {part.shape[-2:] for part in parts}
    if len(shapes) != 1 or any(part.ndim not in (2, 3) for part in parts):
        raise TokenError(
            f"{caller}: expected chunks of one shape [H, A] at argument 'chunks', got "
            f"{sorted({tuple(part.shape) for part in parts})}. Pass [N, H, A], or an "
            "iterable of [H, A] or [n, H, A]."
        )
    whole = torch.cat([part if part.ndim == 3 else part[None] for part in parts])
    if not len(whole) or not whole.isfinite().all():
        raise TokenError(
            f"{caller}: expected finite chunks at argument 'chunks', got "
            f"{int((~whole.isfinite()).sum())} numbers of {list(whole.shape)} that are "
            "not. Leave their frames out."
        )
    return whole
