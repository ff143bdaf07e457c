"""Compression and reconstruction error of an action tokenizer on a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.chunk_tokenizer import ChunkActionTokenizer, read_chunks

_Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class TokenizerReport:
    """What a tokenizer keeps of a dataset's chunks, and in how many tokens.

    ``print(report)`` shows it as a table.

    Args:
        name: of the tokenizer's class.
        n_chunks: chunks that were encoded.
        numbers: of a chunk, ``H * A``.
        tokens: of a chunk, the mean and its 95 % interval.
        longest: tokens of the longest sequence.
        error: mean absolute error of each dimension ``[A]``, in the chunks' unit.
        error_low: lower end of its 95 % interval over chunks.
        error_high: upper end.
        largest: largest error of each dimension.
    """

    name: str
    n_chunks: int
    numbers: int
    tokens: tuple[float, float, float]
    longest: int
    error: tuple[float, ...]
    error_low: tuple[float, ...]
    error_high: tuple[float, ...]
    largest: tuple[float, ...]

    @property
    def compression(self) -> float:
        """Numbers of a chunk per token; 1 for bins."""
        return self.numbers / self.tokens[0]

    def __str__(self) -> str:
        """Return the table."""
        mean, low, high = self.tokens
        lines = [
            f"{self.name} on {self.n_chunks} chunks of {self.numbers} numbers",
            f"tokens per chunk {mean:.2f} [{low:.2f}, {high:.2f}], longest "
            f"{self.longest}; compression {self.compression:.2f}",
            f"{'dimension':>9}  {'mean |error|':>12}  {'95 % interval':>23}  largest",
        ]
        columns = zip(
            self.error, self.error_low, self.error_high, self.largest, strict=True
        )
        for place, (error, below, above, largest) in enumerate(columns):
            interval = f"[{below:.3e}, {above:.3e}]"
            lines.append(f"{place:>9}  {error:>12.3e}  {interval:>23}  {largest:.3e}")
        return "\n".join(lines)


def tokenizer_report(
    tokenizer: ActionTokenizerBase, chunks: Tensor | Iterable[Tensor]
) -> TokenizerReport:
    """Encode and decode a dataset's chunks; report compression and error.

    The intervals are those of a mean over independent chunks (normal approximation);
    overlapping chunks of one episode are not, so take chunks that are apart.

    Args:
        tokenizer: any action tokenizer.
        chunks: in the tokenizer's space, ``[N, H, A]``, or an iterable of ``[H, A]`` or
            ``[n, H, A]``.

    Raises:
        TokenError: the chunks differ in shape, are not finite or do not fit.

    Examples:
        >>> import torch
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> bins = UniformActionTokenizer(2, low=-1.0, high=1.0)
        >>> report = tokenizer_report(bins, torch.tensor([[[0.5], [1.0]]]))
        >>> report.compression, report.error, report.largest
        (1.0, (0.25,), (0.5,))
    """
    data = read_chunks("tokenizer_report", chunks)
    tokens = tokenizer.encode(data)
    error = (tokenizer.decode(tokens).to(data.dtype) - data).abs()
    match tokenizer:
        case ChunkActionTokenizer():
            counts = tokenizer.is_token(tokens).sum(-1).to(data.dtype)
        case _:
            counts = data.new_full((len(data),), tokens[0].numel())
    mean, low, high = _interval(error.mean(1))
    count, count_low, count_high = (float(value) for value in _interval(counts))
    return TokenizerReport(
        name=type(tokenizer).__name__,
        n_chunks=len(data),
        numbers=data[0].numel(),
        tokens=(count, count_low, count_high),
        longest=int(counts.max()),
        error=tuple(mean.tolist()),
        error_low=tuple(low.clamp_min(0).tolist()),
        error_high=tuple(high.tolist()),
        largest=tuple(error.amax((0, 1)).tolist()),
    )


def _interval(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = values.mean(0)
    if len(values) == 1:
        return mean, mean, mean
    half = _Z * values.std(0) / math.sqrt(len(values))
    return mean, mean - half, mean + half
