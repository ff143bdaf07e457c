"""Grammar of FAST tokens: exactly the chunk's number of coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers.byte_pair_vocabulary import BytePairVocabulary
from torchrl_vla.tokenizers.token_grammar import TokenGrammar


class FASTGrammar(TokenGrammar):
    """Allow a token if the coefficients behind it can still be filled exactly.

    The state holds how many coefficients are missing, and which first half of a
    character waits for its second. The end token is allowed at 0 missing alone, and
    nothing else is there.

    Args:
        vocabulary: what each token holds.
        numbers: coefficients of a chunk, ``H * A``.
        length: ``L``.

    Raises:
        TokenError: no sequence of these tokens has that many coefficients.
    """

    def __init__(
        self, vocabulary: BytePairVocabulary, numbers: int, length: int
    ) -> None:
        super().__init__(length, vocabulary.size + 1)
        self.numbers = numbers
        tails, tail_index = vocabulary.tail.unique(return_inverse=True)
        if tails[0] != 0:
            tails, tail_index = torch.cat([tails.new_zeros(1), tails]), tail_index + 1
        self._tails = len(tails)
        entry = (tails > 0).unsqueeze(-1)  # [S, 1]: a second half must come
        fits = torch.where(entry, vocabulary.head >= 0, vocabulary.head == -1)
        none = fits.new_zeros(self._tails, 1)
        self._fits = torch.cat([fits, none], 1)  # [S, V]
        zero = vocabulary.counts.new_zeros(1)
        self._counts = torch.cat([vocabulary.counts, zero])
        self._exits = torch.cat([tail_index, zero])
        self._fillable = self._find_fillable()
        if not self._fillable[numbers, 0]:
            raise TokenError(
                f"FASTGrammar: expected tokens that add up to {numbers} coefficients, "
                "got a vocabulary in which none do."
            )

    def _find_fillable(self) -> Tensor:
        """Return from which (missing, half) an end is reached, bool ``[n+1, S]``."""
        shape = (self.numbers + 1, self._tails)
        fillable = torch.zeros(shape, dtype=torch.bool, device=self._fits.device)
        fillable[0, 0] = True
        for missing in range(1, self.numbers + 1):
            # Entries with a half first: a token without a whole code leads to them.
            for entry in (*range(1, self._tails), 0):
                tokens = self._fits[entry].nonzero().squeeze(-1)
                rest = missing - self._counts[tokens]
                ways = (rest >= 0) & fillable[rest.clamp_min(0), self._exits[tokens]]
                fillable[missing, entry] = ways.any()
        return fillable

    def start(self, rows: int, device: torch.device | None = None) -> Tensor:
        """Return the state of an empty sequence for each row."""
        begin = self.numbers * self._tails
        return torch.full((rows,), begin, dtype=torch.int64, device=device)

    def allowed(self, state: Tensor) -> Tensor:
        """Return which tokens leave a rest that can be filled, bool ``[N, V]``."""
        self._to(state.device)
        missing, entry = state // self._tails, state % self._tails
        rest = missing.unsqueeze(-1) - self._counts
        can = self._fillable[rest.clamp_min(0), self._exits.expand_as(rest)]
        allowed = self._fits[entry] & can & (rest >= 0)
        allowed[:, -1] = state == 0
        return allowed

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Take the tokens' coefficients off."""
        self._to(state.device)
        missing = state // self._tails - self._counts[tokens]
        return missing * self._tails + self._exits[tokens]

    def is_end(self, state: Tensor) -> Tensor:
        """Return where no coefficient is missing."""
        return state == 0

    def _to(self, device: torch.device) -> None:
        if self._counts.device != device:
            for name in ("_counts", "_exits", "_fits", "_fillable"):
                setattr(self, name, vars(self)[name].to(device))
