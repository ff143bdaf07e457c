"""Tokens of a byte-pair encoding as the coefficients that they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers.byte_pair_merges import merges_of


class _Encoding(Protocol):
    ids: list[int]


class LibraryTokenizer(Protocol):
    """What is used of ``tokenizers.Tokenizer``."""

    def encode_batch_fast(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[_Encoding]:
        """Return the tokens of each text."""


class BytePairVocabulary(nn.Module):
    """Read a ``tokenizer.json``: which characters each token consists of.

    A character is one coefficient; its code is the coefficient minus the smallest. In
    the published processors the merges are of UTF-8 bytes, where a code of 128 or more
    takes two: a token may then end with the first byte of a character (its *tail*),
    and the next begins with the second (its *head*).

    Args:
        bpe: text of the file.

    Raises:
        TokenError: it is no such file, or a token is none of these.
    """

    #: Codes are below it: one or two bytes of UTF-8.
    max_codes: ClassVar[int] = 2048

    head: Tensor
    tail: Tensor
    counts: Tensor
    starts: Tensor
    codes: Tensor
    token_of_code: Tensor

    def __init__(self, bpe: str) -> None:
        super().__init__()
        try:
            stored = json.loads(bpe)
            model, vocabulary = stored["model"], stored["model"]["vocab"]
            kind = model.get("type", "BPE")
            ids = sorted(vocabulary.values())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TokenError(
                "FASTActionTokenizer: expected the text of a tokenizer.json of the "
                f"library tokenizers, got {type(error).__name__}: {error}."
            ) from error
        if kind != "BPE" or stored.get("normalizer") or ids != list(range(len(ids))):
            raise TokenError(
                "FASTActionTokenizer: expected a BPE model without a normalizer and "
                f"with ids 0 to {len(ids) - 1}, got {kind!r}, normalizer "
                f"{stored.get('normalizer')!r}, ids up to {ids[-1] if ids else None}."
            )
        self.size = len(ids)
        pre = stored.get("pre_tokenizer")
        self.of_bytes = pre is not None and pre.get("type") == "ByteLevel"
        if pre is not None and (not self.of_bytes or pre.get("add_prefix_space")):
            raise TokenError(
                "FASTActionTokenizer: expected no pre_tokenizer, or ByteLevel without "
                f"add_prefix_space, got {pre}."
            )
        #: Arguments of :class:`BytePairMerges`; None = the library encodes.
        self.merges = (
            None if self.of_bytes else (merges_of(model, vocabulary), self.size)
        )
        self._read_tokens({token: text for text, token in vocabulary.items()})

    def _read_tokens(self, texts: dict[int, str]) -> None:
        """Set what each token holds: codes, and halves of codes at its ends."""
        byte_of = {char: byte for byte, char in _byte_characters().items()}
        heads, tails, counts, codes = [], [], [], []
        token_of_code = [-1] * self.max_codes
        for token in range(self.size):
            text = texts[token]
            head, tail, found = -1, 0, [ord(char) for char in text]
            if self.of_bytes:
                try:
                    head, found, tail = _split([byte_of[char] for char in text])
                except (KeyError, ValueError):
                    head, found, tail = -2, [], 0  # can stand nowhere
            if any(code >= self.max_codes for code in found) or not (
                found or tail or head >= 0
            ):
                head, found, tail = -2, [], 0
            if len(found) == 1 and head < 0 and not tail:
                token_of_code[found[0]] = token
            heads.append(head)
            tails.append(tail)
            counts.append(len(found) + (head >= 0))
            # A head's code depends on the tail before it, which is added to it.
            codes.append([head] * (head >= 0) + found)
        flat = [code for row in codes for code in row]
        lengths = torch.tensor([len(row) for row in codes])
        for name, values in (
            ("head", torch.tensor(heads)),
            ("tail", torch.tensor(tails)),
            ("counts", torch.tensor(counts)),
            ("starts", lengths.cumsum(0) - lengths),
            ("codes", torch.tensor(flat, dtype=torch.int64)),
            ("token_of_code", torch.tensor(token_of_code)),
        ):
            self.register_buffer(name, values, persistent=False)

    @property
    def tokens_per_code(self) -> int:
        """Most tokens that one code can take."""
        return 2 if bool((self.tail > 0).any() and (self.head >= 0).any()) else 1

    def nearest_codes(self) -> Tensor:
        """Return for each code the nearest one that tokens can express, int64.

        Raises:
            TokenError: there is none.
        """
        can = self.token_of_code >= 0
        if self.of_bytes:
            # Both bytes must be tokens of their own, from which the rest is merged.
            can[128:] = False
            halves = (self.head >= 0) & (self.counts == 1) & (self.tail == 0)
            ends = self.head[halves]
            leads = self.tail[(self.tail > 0) & (self.counts == 0)]
            can[(leads.unsqueeze(-1) * 64 + ends).flatten()] = True
        known = can.nonzero().squeeze(-1)
        if not len(known):
            raise TokenError(
                "FASTActionTokenizer: expected tokens of single coefficients, got a "
                "vocabulary without. It is of text."
            )
        every = torch.arange(int(known.max()) + 1)
        right = torch.searchsorted(known, every).clamp_max(len(known) - 1)
        left = (right - 1).clamp_min(0)
        below, above = known[left], known[right]
        return torch.where((every - below).abs() < (above - every).abs(), below, above)

    def codes_of(self, tokens: Tensor, numbers: int) -> Tensor | None:
        """Return the codes ``[N, numbers]`` of sequences; None = one is malformed.

        Args:
            tokens: int64 ``[N, L]``; ``size`` is the end token.
            numbers: codes that each row must have.
        """
        rows = len(tokens)
        is_end = tokens == self.size
        known = (tokens >= 0) & (tokens <= self.size)
        well = known.all() & ~(is_end[:, :-1] & ~is_end[:, 1:]).any()
        inside = torch.where(is_end | ~known, 0, tokens)
        tail = torch.where(is_end, 0, self.tail[inside])
        head = torch.where(is_end, -1, self.head[inside])
        before = torch.cat([tail.new_zeros(rows, 1), tail[:, :-1]], 1)
        counts = torch.where(is_end, 0, self.counts[inside])
        well &= ((before > 0) == (head >= 0)).all() & (head > -2).all()
        well &= (tail[:, -1] == 0).all() & (counts.sum(-1) == numbers).all()
        if not well:
            return None
        flat = counts.flatten()
        first = flat.cumsum(0) - flat
        start = (self.starts[inside].flatten() - first).repeat_interleave(flat)
        found = self.codes[start + torch.arange(len(start), device=start.device)]
        split = (head >= 0).flatten()
        found[first[split]] += before.flatten()[split] * 64
        return found.view(rows, numbers)


def _split(values: list[int]) -> tuple[int, list[int], int]:
    """Return the head (-1 = none), the whole codes and the tail (0 = none) of bytes."""
    head, tail = -1, 0
    if values and 0x80 <= values[0] < 0xC0:
        head, values = values[0] & 0x3F, values[1:]
    if values and 0xC2 <= values[-1] < 0xE0:
        tail, values = values[-1] & 0x1F, values[:-1]
    return head, [ord(char) for char in bytes(values).decode("utf-8")], tail


def _byte_characters() -> dict[int, str]:
    """Return the printable character that stands for each byte in a vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    named = {byte: chr(byte) for byte in printable}
    return named | {byte: chr(256 + place) for place, byte in enumerate(others)}
