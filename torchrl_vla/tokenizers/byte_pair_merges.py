"""Byte-pair encoding of many sequences at once, with tensors instead of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_NEVER = torch.iinfo(torch.int16).max  # rank of a pair that does not merge


class BytePairMerges(nn.Module):
    """Merge pairs of neighbours in the order of their ranks, all rows at once.

    The same result as merging, in each sequence, the pair of the lowest rank (the
    leftmost of these) until no pair merges. A pair is merged early, in the same round
    as others, only where no token that its neighbours can still become would take a
    half of it first: ``left`` and ``right`` hold, for two neighbouring tokens, the
    lowest rank of any merge that could tear the pair apart.

    Args:
        merges: ids ``(first, second, merged)`` by rank.
        vocab_size: ids are below it.
    """

    rank: Tensor
    merged: Tensor
    tears_right: Tensor
    tears_left: Tensor

    def __init__(self, merges: Sequence[tuple[int, int, int]], vocab_size: int) -> None:
        super().__init__()
        if len(merges) >= _NEVER:
            raise ValueError(
                f"BytePairMerges: expected fewer than {_NEVER} merges, got "
                f"{len(merges)}."
            )
        size = vocab_size + 1  # the last stands between sequences
        rank = torch.full((size, size), _NEVER, dtype=torch.int16)
        merged = torch.zeros(len(merges) + 1, dtype=torch.int32)
        for place, (first, second, result) in enumerate(merges):
            if rank[first, second] == _NEVER:
                rank[first, second], merged[place] = place, result
        # A token whose left part is c begins with c: what it is torn by, c may become.
        tears_right, tears_left = rank.clone(), rank.clone()
        for first, second, result in reversed(merges):
            column = tears_right[:, result]
            tears_right[:, first] = torch.minimum(tears_right[:, first], column)
            row = tears_left[result]
            tears_left[second] = torch.minimum(tears_left[second], row)
        for name, table in (
            ("rank", rank),
            ("tears_right", tears_right),
            ("tears_left", tears_left),
        ):
            self.register_buffer(name, table.flatten(), persistent=False)
        self.register_buffer("merged", merged, persistent=False)
        self.border = vocab_size
        self.size = size

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Encode sequences of one length.

        Args:
            symbols: ids of single symbols, int64 ``[N, n]``.

        Returns:
            The tokens of all rows in turn, int64 ``[M]``, and each row's number of
            them, int64 ``[N]``.
        """
        rows, _ = symbols.shape
        border = symbols.new_full((rows, 1), self.border)
        # Half as wide numbers are twice as fast to gather.
        chain = _Chain(self, torch.cat([border, symbols, border], 1).flatten().int())
        while len(first := chain.safe()) or len(first := chain.lowest()):
            chain.merge(first)
        tokens = chain.compact()
        ends = (tokens == self.border).nonzero().squeeze(-1).view(rows, 2)
        return tokens[tokens != self.border].long(), ends[:, 1] - ends[:, 0] - 1


class _Chain:
    """Tokens in a row, linked to their neighbours; what is merged leaves the row."""

    def __init__(self, merges: BytePairMerges, tokens: Tensor) -> None:
        self._merges = merges
        self.tokens = tokens
        pair = tokens * merges.size + tokens.roll(-1)
        self.rank = merges.rank.index_select(0, pair)
        self.tears_right = merges.tears_right.index_select(0, pair)
        self.tears_left = merges.tears_left.index_select(0, pair)
        self._link()

    def _link(self) -> None:
        """Link each token to the one before and behind it."""
        count = len(self.tokens)
        self.alive = torch.ones_like(self.tokens, dtype=torch.bool)
        place = torch.arange(
            -1, count + 1, dtype=torch.int32, device=self.tokens.device
        )
        place[0], place[-1] = count - 1, 0
        self.left, self.right = place[:-2].clone(), place[2:].clone()
        self._left_over = count

    def compact(self) -> Tensor:
        """Drop what was merged, and return the tokens."""
        kept = self.alive.nonzero().squeeze(-1)
        for name in ("tokens", "rank", "tears_right", "tears_left"):
            setattr(self, name, vars(self)[name].index_select(0, kept))
        self._link()
        return self.tokens

    def _mergeable(self) -> Tensor:
        return (self.rank < _NEVER).nonzero().squeeze(-1)

    def safe(self) -> Tensor:
        """Return where pairs begin that no other merge can tear."""
        place = self._mergeable()
        rank = self.rank.index_select(0, place)
        left = self.left.index_select(0, place)
        after = self.tears_right.index_select(0, self.right.index_select(0, place))
        before = self.tears_left.index_select(0, left)
        can = rank <= after
        safe = can & (rank < before)
        # Of equal pairs in a row (a token repeated), every second one merges, counted
        # from the first; as far as the ones before it do.
        repeats = can & (rank == before) & (self.rank.index_select(0, left) == rank)
        if repeats.any():
            order = torch.arange(len(place), device=place.device)
            start = torch.where(repeats, -1, order).cummax(0).values
            safe |= repeats & safe[start] & ((order - start) & 1 == 0)
        return place[safe]

    def lowest(self) -> Tensor:
        """Return where each row's leftmost pair of the lowest rank begins."""
        place = self._mergeable()
        if not len(place):
            return place
        row = (self.tokens == self._merges.border).cumsum(0)[place]
        key = self.rank[place].long() * len(self.tokens) + place
        lowest = key.new_full((int(row[-1]) + 1,), -1)
        lowest = lowest.scatter_reduce(0, row, key, "amin", include_self=False)
        return lowest[lowest >= 0] % len(self.tokens)

    def merge(self, first: Tensor) -> None:
        """Merge the pairs that begin at these places."""
        tables = self._merges
        second = self.right.index_select(0, first)
        after = self.right.index_select(0, second)
        merged = tables.merged.index_select(0, self.rank.index_select(0, first).int())
        self.tokens.index_copy_(0, first, merged)
        self.alive.index_fill_(0, second.long(), False)
        self.rank.index_fill_(0, second.long(), _NEVER)
        self.right.index_copy_(0, first, after)
        self.left.index_copy_(0, after.long(), first.int())
        changed = torch.cat([first, self.left.index_select(0, first).long()])
        beside = self.tokens.index_select(0, self.right.index_select(0, changed))
        pair = self.tokens.index_select(0, changed) * tables.size + beside
        for name in ("rank", "tears_right", "tears_left"):
            found = tables.get_buffer(name).index_select(0, pair)
            vars(self)[name].index_copy_(0, changed, found)
        self._left_over -= len(first)
        if self._left_over < 0.7 * len(self.tokens):
            self.compact()


def merges_of(
    model: Mapping[str, object], vocabulary: Mapping[str, int]
) -> list[tuple[int, int, int]]:
    """Return the merges of a ``tokenizer.json`` model: ``(first, second, merged)``.

    Args:
        model: its ``"model"``; a merge is a pair of tokens, or text with a space.
        vocabulary: token to id.
    """
    found = []
    for merge in model["merges"]:  # type: ignore[attr-defined]
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        found.append(
            (vocabulary[first], vocabulary[second], vocabulary[first + second])
        )
    return found
