"""Random numbers that are a function of a seed, for many seeds at once."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014), its constants as signed 64-bit numbers.
GOLDEN = -7046029254386353131
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685

#: Separates the noise of policies from other numbers made of an episode's seed.
_POLICY_NOISE = 1


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """Draw ``count`` uniform numbers in ``[0, 1)`` per seed.

    The numbers of a seed depend on that seed alone, not on the seeds beside it. So an
    episode's initial state does not depend on how many environments run.

    Args:
        seeds: int64 ``[N]``.
        count: how many numbers per seed.

    Returns:
        float32 ``[N, count]``.

    Examples:
        >>> import torch
        >>> numbers = uniforms(torch.tensor([3, 4]), 2)
        >>> torch.equal(numbers[1:], uniforms(torch.tensor([4]), 2))
        True
    """
    # 24 bits are what a float32 holds exactly
    return _shift_right(_words(seeds, count), 40).to(torch.float32) / (1 << 24)


def normals(seeds: Tensor, count: int) -> Tensor:
    """Draw ``count`` standard normal numbers per seed, by the inverse of their CDF.

    As with :func:`uniforms`, a seed's numbers depend on that seed alone, and its first
    numbers do not depend on ``count``.

    Args:
        seeds: int64 ``[N]``.
        count: how many numbers per seed.

    Returns:
        float64 ``[N, count]``.

    Examples:
        >>> import torch
        >>> numbers = normals(torch.arange(1000), 3)
        >>> torch.equal(numbers[:5, :2], normals(torch.arange(5), 2))
        True
        >>> abs(numbers.mean().item()) < 0.1, abs(numbers.std().item() - 1) < 0.1
        (True, True)
    """
    # The middles of 2**52 intervals, which a float64 holds exactly: never 0 or 1.
    middles = _shift_right(_words(seeds, count), 12).to(torch.float64) + 0.5
    return torch.special.ndtri(middles / (1 << 52))


def noise_seeds(episode_seeds: Tensor, frames: Tensor) -> Tensor:
    """Return the seeds of a sampling policy's noise on a step of each episode.

    Args:
        episode_seeds: int64 ``[*B]``.
        frames: 0-based step within the episode, int64 ``[*B]``.

    Returns:
        int64 ``[*B]``.
    """
    return hash_numbers(_POLICY_NOISE, episode_seeds, frames)


def hash_numbers(first: Tensor | int, *others: Tensor | int) -> Tensor:
    """Hash a sequence of int64 numbers; their order matters.

    Args:
        first: the first number; tensors broadcast.
        others: the numbers after it.

    Returns:
        int64, of the broadcast shape.

    Examples:
        >>> hash_numbers(1, 2) == hash_numbers(2, 1)
        tensor(False)
    """
    state = torch.as_tensor(first)
    for number in others:
        state = mix(state * GOLDEN + torch.as_tensor(number))
    return state


def mix(x: Tensor) -> Tensor:
    """Scramble int64 numbers: every bit of the result depends on every bit."""
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _words(seeds: Tensor, count: int) -> Tensor:
    """Return ``count`` random 64-bit words per seed, ``[N, count]``."""
    counter = torch.arange(1, count + 1, device=seeds.device)
    return mix(mix(seeds.unsqueeze(-1) + GOLDEN) + counter * GOLDEN)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as an unsigned number: int64's own shift repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
