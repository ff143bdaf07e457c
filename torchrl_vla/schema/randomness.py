"""Random numbers that are a function of a seed, for many seeds at once."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014), its constants as signed 64-bit numbers.
GOLDEN = -7046029254386353131
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """Draw ``count`` uniform numbers in ``[0, 1)`` per seed.

    A row depends on its own seed alone, so an episode's initial state does not
    depend on how many environments run beside it, or on which.

    Args:
        seeds: int64 ``[N]``.
        count: how many numbers a seed gives.

    Returns:
        float32 ``[N, count]``.

    Examples:
        >>> import torch
        >>> draws = uniforms(torch.tensor([3, 4]), 2)
        >>> torch.equal(draws[1:], uniforms(torch.tensor([4]), 2))
        True
    """
    counter = torch.arange(1, count + 1, device=seeds.device)
    state = mix(seeds.unsqueeze(-1) + GOLDEN) + counter * GOLDEN
    # 24 bits are what a float32 holds exactly
    return (_shift_right(mix(state), 40)).to(torch.float32) / (1 << 24)


def mix(x: Tensor) -> Tensor:
    """Scramble int64 numbers: every bit of the result depends on every bit."""
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as an unsigned number: int64's own shift repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
