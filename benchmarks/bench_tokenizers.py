"""Encode and decode actions: ours, TorchRL's, and the bare arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/bench_tokenizers.py

The arithmetic is what a token is by its formula, with nothing checked: NaN becomes a
token and a foreign token an action. Ours refuses both. Everyone must first give the
same tokens for actions on, beside and between the edges, and the same actions back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from torch import Tensor
from torchrl.data.vla import UniformActionTokenizer as PeerUniform
from torchrl.data.vla import VocabTailActionTokenizer as PeerVocabTail

from torchrl_vla.tokenizers import (
    OpenVLAActionTokenizer,
    UniformActionTokenizer,
    VocabTailActionTokenizer,
)

BINS, VOCABULARY = 256, 32_000
SIZE, QUICK_SIZE = (256, 50, 14), (2, 5, 14)


class UniformArithmetic:
    """Scale, floor and clamp; the middle of a bin back."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.width = low, (high - low) / BINS

    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions into tokens."""
        return ((actions - self.low) / self.width).floor().clamp(0, BINS - 1).long()

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens into actions."""
        return (tokens + 0.5) * self.width + self.low


class VocabTailArithmetic:
    """Count down from the end of the vocabulary; the middle between two edges back."""

    def __init__(
        self,
        low: Tensor | None = None,
        high: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.low, self.high, self.mask = low, high, mask

    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions into tokens."""
        if self.low is not None:
            scaled = 2 * (actions - self.low) / (self.high - self.low + 1e-8) - 1
            actions = torch.where(self.mask, scaled, actions)
        steps = (actions.clamp(-1, 1) + 1) * ((BINS - 1) / 2)
        return VOCABULARY - 1 - steps.floor().long()

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens into actions."""
        bins = (VOCABULARY - 1 - tokens).clamp(0, BINS - 2)
        actions = (bins + 0.5) * (2 / (BINS - 1)) - 1
        if self.low is not None:
            scaled = (actions + 1) * (self.high - self.low + 1e-8) / 2 + self.low
            actions = torch.where(self.mask, scaled, actions)
        return actions


def compare(title: str, actions: Tensor, rounds: int, trio: tuple) -> None:
    arithmetic, ours, peer = trio
    tokens = ours.encode(actions)
    check_equal(f"{title} encode", {"ours": tokens, "TorchRL": peer.encode(actions)})
    # The bare formula rounds otherwise beside an edge, so it may be one bin off.
    if (arithmetic.encode(actions) - tokens).abs().max() > 1:
        raise AssertionError(f"{title} encode: the arithmetic is another code.")
    decoded = ours.decode(tokens)
    for name, other in (("TorchRL", peer), ("arithmetic", arithmetic)):
        if not torch.allclose(decoded, other.decode(tokens).float(), atol=1e-6):
            raise AssertionError(f"{title} decode: ours and {name} disagree.")
    names = ("arithmetic", "ours", "TorchRL")
    for direction, values in (("encode", actions), ("decode", tokens)):
        contestants = {
            name: _call(getattr(codec, direction), values)
            for name, codec in zip(names, trio)
        }
        times = time_in_turns(contestants, rounds, repeats=5)
        print_rows(f"{title} {direction}", times, "arithmetic")


def _call(convert: Callable[[Tensor], Tensor], values: Tensor) -> Callable[[], Tensor]:
    return lambda: convert(values)


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = QUICK_SIZE if quick else SIZE
    rounds = 2 if quick else 31
    width = size[-1]
    low, high = -torch.rand(width) - 0.5, torch.rand(width) + 0.5
    actions = torch.randn(size).clamp(-2, 2)
    print(f"Tokens of {list(size)} actions, {BINS} bins, 1 thread; equal: checked")
    print_head("the arithmetic")
    trio = (
        UniformArithmetic(low, high),
        UniformActionTokenizer(BINS, low=low, high=high),
        PeerUniform(BINS, low=low, high=high),
    )
    compare("uniform", actions, rounds, trio)
    keys = {"full_vocab_size": VOCABULARY}
    trio = (
        VocabTailArithmetic(),
        VocabTailActionTokenizer(BINS, **keys),
        PeerVocabTail(BINS, **keys),
    )
    compare("vocab tail", actions, rounds, trio)
    mask = torch.arange(width) < width - 1  # the last is a gripper
    keys |= {"norm_low": low, "norm_high": high, "norm_mask": mask}
    trio = (
        VocabTailArithmetic(low, high, mask),
        OpenVLAActionTokenizer(BINS, **keys),
        PeerVocabTail(BINS, **keys),
    )
    compare("vocab tail, stats", actions, rounds, trio)


if __name__ == "__main__":
    main()
