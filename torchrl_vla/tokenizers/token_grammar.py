"""Rules of which token may follow a partial sequence of action tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchrl_vla.schema import TokenError


class TokenGrammar(ABC):
    """Say which tokens may come next, so that every finished sequence decodes.

    Abstract: an automaton with whole numbers as states, for many rows at once. From
    every state that can be reached at least one token is allowed, and after
    :attr:`length` allowed tokens the sequence is one that the tokenizer decodes.

    Args:
        length: ``L``, tokens of a sequence, its end tokens included.
        vocab_size: ``V``.

    Examples:
        >>> grammar = PositionGrammar(torch.tensor([[True, False], [True, True]]))
        >>> state = grammar.start(1)
        >>> grammar.allowed(state)
        tensor([[ True, False]])
        >>> grammar.allowed(grammar.advance(state, torch.tensor([0])))
        tensor([[True, True]])
    """

    def __init__(self, length: int, vocab_size: int) -> None:
        self.length = length
        self.vocab_size = vocab_size

    @abstractmethod
    def start(self, rows: int, device: torch.device | None = None) -> Tensor:
        """Return the states before the first token, int64 ``[N]``."""

    @abstractmethod
    def allowed(self, state: Tensor) -> Tensor:
        """Return which tokens may come next, bool ``[N, V]``; True = may."""

    @abstractmethod
    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Return the states ``[N]`` after allowed tokens ``[N]``."""

    @abstractmethod
    def is_end(self, state: Tensor) -> Tensor:
        """Return where nothing but end tokens is left, bool ``[N]``."""

    def allowed_along(self, tokens: Tensor, *, finished: bool = False) -> Tensor:
        """Return what was allowed at each place of sequences, bool ``[N, T, V]``.

        Args:
            tokens: int64 ``[N, T]``, sequences without end tokens, or beginnings.

        Keyword Args:
            finished: True = refuse sequences that are not at their end.

        Raises:
            TokenError: a token was not allowed; names its place.
        """
        state = self.start(len(tokens), tokens.device)
        masks = []
        for place, token in enumerate(tokens.unbind(-1)):
            allowed = self.allowed(state)
            self._check(allowed, token, place)
            masks.append(allowed)
            state = self.advance(state, token)
        if finished:
            self._check_end(state, tokens.shape[-1])
        return torch.stack(masks, 1)

    def check(self, tokens: Tensor) -> None:
        """Refuse sequences ``[N, L]`` that are malformed or end too early.

        Raises:
            TokenError: names the place of the first wrong token.
        """
        self.allowed_along(tokens, finished=True)

    def _check_end(self, state: Tensor, length: int) -> None:
        unfinished = ~self.is_end(state)
        if unfinished.any():
            row = int(unfinished.nonzero()[0, 0])
            raise TokenError(
                f"{type(self).__name__}: expected a sequence that ends within "
                f"{length} tokens, got one that does not in row {row}. Keep all tokens "
                "of a sequence."
            )

    def _check(self, allowed: Tensor, token: Tensor, place: int) -> None:
        if torch.compiler.is_compiling():
            return
        foreign = (token < 0) | (token >= self.vocab_size)
        index = token.clamp(0, self.vocab_size - 1).unsqueeze(-1)
        wrong = foreign | ~allowed.gather(-1, index).squeeze(-1)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            choices = allowed[row].nonzero().flatten().tolist()
            shown = ", ".join(map(str, choices[:5]))
            more = f", ... ({len(choices)} in all)" if len(choices) > 5 else ""
            raise TokenError(
                f"{type(self).__name__}: expected one of the tokens {shown}{more} at "
                f"position {place} of row {row}, got {int(token[row])}. The sequence "
                "is of another tokenizer or was not sampled with this grammar."
            )


class PositionGrammar(TokenGrammar):
    """Allow at each position a fixed set of tokens: sequences of one length.

    Args:
        allowed: bool ``[L, V]``, True = may stand there.

    Raises:
        TokenError: a position allows no token.
    """

    def __init__(self, allowed: Tensor) -> None:
        super().__init__(*allowed.shape)
        if not allowed.any(-1).all():
            place = int((~allowed.any(-1)).nonzero()[0, 0])
            raise TokenError(
                "PositionGrammar: expected a token for each position at argument "
                f"'allowed', got none at position {place}."
            )
        self._allowed = allowed

    def start(self, rows: int, device: torch.device | None = None) -> Tensor:
        """Return position 0 for each row."""
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def allowed(self, state: Tensor) -> Tensor:
        """Return the sets of the positions."""
        self._allowed = self._allowed.to(state.device)
        return self._allowed[state.clamp_max(self.length - 1)]

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Go to the next position."""
        return state + 1

    def is_end(self, state: Tensor) -> Tensor:
        """Return where all positions are filled."""
        return state >= self.length
