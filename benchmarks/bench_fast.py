"""Encode chunks to FAST tokens: ours, and the published processor's steps in Python.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/bench_fast.py

The published processor (physical-intelligence/fast) transforms with scipy, makes a
text of each chunk and gives it to a tokenizer of ``transformers``. Here this is done
chunk by chunk, and chunk by chunk with the library ``tokenizers`` alone, which is
faster. All must first give the same tokens. No chunk is encoded twice, so that no cache
answers. The column is numbers per token.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick
from scipy.fft import dct
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from torchrl_vla.tokenizers import FASTActionTokenizer, tokenizer_report

SIZES = ((16, 7), (50, 14))


def make_chunks(count: int, size: int, width: int, seed: int) -> Tensor:
    """Return sines of random frequency, phase and height, with noise."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, size)[None, :, None]
    speed, phase, height = rng.uniform(0.2, 1.5, (3, count, 1, width))
    smooth = np.sin(2 * np.pi * (times * speed + phase)) * height
    return torch.from_numpy(smooth + 0.02 * rng.standard_normal(smooth.shape))


class Published:
    """One chunk after the other: transform, text, tokenizer."""

    def __init__(self, ours: FASTActionTokenizer, encode) -> None:
        self.ours, self.encode_text = ours, encode

    def encode(self, chunks: Tensor) -> list[list[int]]:
        """Return the tokens of each chunk."""
        scale, low = self.ours.scale, self.ours.min_token
        found = []
        for chunk in chunks.numpy():
            levels = np.around(dct(chunk, axis=0, norm="ortho") * scale)
            codes = np.maximum(levels.flatten() - low, 0).astype(int)
            found.append(self.encode_text("".join(map(chr, codes))))
        return found


def padded(rows: list[list[int]], like: Tensor, end: int) -> Tensor:
    """Return lists of tokens as sequences with end tokens."""
    out = torch.full_like(like, end)
    for place, row in enumerate(rows):
        out[place, : len(row)] = torch.tensor(row)
    return out


def compare(size: int, width: int, count: int, rounds: int) -> None:
    """Race on new chunks each round."""
    ours = FASTActionTokenizer.fit(make_chunks(4 * count, size, width, 0))
    library = Tokenizer.from_str(ours.bpe)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(ours.bpe))
    contestants = {
        "transformers, each": Published(ours, lambda text: wrapped(text)["input_ids"]),
        "tokenizers, each": Published(ours, lambda text: library.encode(text).ids),
        "ours": ours,
    }
    limit = (ours.min_token + len(ours.nearest) - 1, ours.min_token)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        chunks = make_chunks(count, size, width, 100 + number)
        levels = ours.coefficients(chunks).flatten(1)
        inside = (levels <= limit[0]).all(1) & (levels >= limit[1]).all(1)
        chunks = chunks[inside]  # outside, the published one loses characters
        found = {}
        for name, contestant in contestants.items():
            start = time.process_time()
            found[name] = contestant.encode(chunks)
            if number >= 0:
                times[name].append((time.process_time() - start) * 1e3)
        tokens = found.pop("ours")
        equal = {n: padded(rows, tokens, ours.end_token) for n, rows in found.items()}
        check_equal(f"FAST [{size}, {width}]", {"ours": tokens, **equal})
    title = f"[{size}, {width}], {count} chunks"
    report = tokenizer_report(ours, make_chunks(count, size, width, 99))
    columns = dict.fromkeys(times, (f"{report.compression:.2f}",))
    print_rows(title, times, "ours", columns)


def main() -> None:
    """Run the race."""
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print("Encode chunks [H, A] to FAST tokens, CPU time of 1 thread; equal: checked")
    print_head("ours", "numbers")
    for size, width in SIZES:
        compare(size, width, 50 if quick else 2000, 2 if quick else 15)


if __name__ == "__main__":
    main()
