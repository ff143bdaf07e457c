"""A small trainable encoder of instructions, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrl_vla.policies.encoders.text_features import TextEncoder, TokenStates

_PAD = 256  # after the 256 byte values


class ByteTextEncoder(TextEncoder):
    """Encode text from its UTF-8 bytes: two convolutions and attention pooling.

    Every text has its own byte sequence, so no two instructions look alike to the
    policy (hashing words into buckets made that happen), there is no vocabulary to
    build, and any language works.

    Args:
        dim: ``E``, size of the encoding.

    Keyword Args:
        max_bytes: ``L``, longest text in UTF-8 bytes.
        width: channels of the convolutions.

    Examples:
        >>> encoder = ByteTextEncoder(8)
        >>> encoder(encoder.to_bytes(["pick", "place"])).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int, *, max_bytes: int = 128, width: int = 64) -> None:
        super().__init__(dim)
        self.max_bytes = max_bytes
        self.embedding = nn.Embedding(_PAD + 1, width, padding_idx=_PAD)
        self.position = nn.Parameter(torch.randn(max_bytes, width) * 0.1)
        self.first = nn.Conv1d(width, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.attention = nn.Linear(width, 4)
        self.out = nn.Linear(4 * width, dim)
        # Instructions share most of their words; this spreads their encodings out.
        self.norm = nn.LayerNorm(dim)

    def prepare(self, texts: Sequence[str]) -> Tensor:
        """Return the texts' bytes, see :meth:`to_bytes`."""
        return self.to_bytes(texts)

    def to_bytes(self, texts: Sequence[str]) -> Tensor:
        """Return the texts' bytes, int64 ``[N, L]``, padded with 256.

        Raises:
            ValueError: a text is empty, or longer than ``max_bytes``.
        """
        rows = torch.full((len(texts), self.max_bytes), _PAD, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            data = text.encode("utf-8", "surrogatepass")  # any str has bytes
            if not 0 < len(data) <= self.max_bytes:
                raise ValueError(
                    f"ByteTextEncoder: expected 1 to max_bytes={self.max_bytes} bytes "
                    f"of text, got {len(data)} in {text!r}. Build the policy with "
                    f"text_max_bytes={len(data)} or more, or shorten the text."
                )
            row[: len(data)] = torch.tensor(list(data))
        return rows

    def forward(self, rows: Tensor) -> Tensor:
        """Encode bytes ``[N, L]`` as ``[N, E]``."""
        x, is_pad = self.encode_tokens(rows)
        scores = self.attention(x).masked_fill(is_pad.unsqueeze(-1), -torch.inf)
        pooled = scores.softmax(1).transpose(1, 2) @ x  # [N, heads, width]
        return self.norm(self.out(pooled.flatten(1)))

    def encode_tokens(self, rows: Tensor) -> TokenStates:
        """Return the states of the bytes, ``[N, L, width]``."""
        real = (rows != _PAD).unsqueeze(1)  # [N, 1, L]
        x = (self.embedding(rows) + self.position).transpose(1, 2) * real
        x = x + torch.relu(self.first(x)) * real
        x = x + torch.relu(self.second(x)) * real
        return TokenStates(x.transpose(1, 2), ~real.squeeze(1))
