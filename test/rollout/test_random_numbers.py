from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.rollout import hash_numbers, noise_seeds, normals, uniforms

WORD = 1 << 64
seeds_of = st.lists(st.integers(0, 2**62), min_size=1, max_size=4)


def words(seed, count):
    """SplitMix64 with Python's integers, from a state that is itself mixed."""

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) % WORD)
    return [mix((state + k * golden) % WORD) for k in range(1, count + 1)]


@settings(deadline=None)
@given(seeds_of, st.integers(1, 6))
def test_uniforms_are_those_of_splitmix64(seeds, count):
    expected = [[(word >> 40) / 2**24 for word in words(seed, count)] for seed in seeds]
    assert uniforms(torch.tensor(seeds), count).tolist() == expected


@settings(deadline=None)
@given(seeds_of, st.integers(1, 6))
def test_normals_are_quantiles_of_splitmix64(seeds, count):
    numbers = normals(torch.tensor(seeds), count)
    for found, seed in zip(numbers.tolist(), seeds):
        levels = [((word >> 12) + 0.5) / 2**52 for word in words(seed, count)]
        expected = [NormalDist().inv_cdf(level) for level in levels]
        # Two approximations of the quantile, each good to 16 digits of its own
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(seeds_of, st.integers(2, 6))
def test_the_numbers_of_a_seed_depend_on_it_alone(seeds, count):
    for numbers in (uniforms, normals):
        together = numbers(torch.tensor(seeds), count)
        for found, seed in zip(together, seeds):
            assert torch.equal(found[:1], numbers(torch.tensor([seed]), 1)[0])


def test_neighboring_seeds_are_even_and_unrelated():
    numbers = uniforms(torch.arange(20_000), 4).double()
    counts = torch.histc(numbers, bins=20, min=0.0, max=1.0)
    assert (counts / 4000 - 1).abs().max() < 0.08  # 5 standard deviations
    correlation = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], -1).T)
    off_diagonal = correlation - torch.eye(8)
    assert off_diagonal.abs().max() < 0.04


def test_normals_have_the_moments_of_a_standard_normal():
    numbers = normals(torch.arange(50_000), 4).flatten()
    n = len(numbers)
    # 5 standard deviations of each moment's estimate: sqrt of 1, 2, 15, 96 over n
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (numbers**power).mean().item() - moment
        assert abs(error) < 5 * math.sqrt(variance / n)


def test_the_extreme_normals_are_finite():
    # No seed has such words: the smallest and the largest middle of an interval.
    ends = torch.tensor([0.5, 2**52 - 0.5], dtype=torch.float64) / 2**52
    assert torch.special.ndtri(ends).isfinite().all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=4, unique=True))
def test_the_order_of_hashed_numbers_matters(numbers):
    assert hash_numbers(*numbers) != hash_numbers(*reversed(numbers))


def test_noise_seeds_of_neighboring_episodes_and_frames_differ():
    episodes, frames = torch.arange(300).unsqueeze(-1), torch.arange(300)
    seeds = noise_seeds(episodes, frames)
    assert seeds.shape == (300, 300)
    assert seeds.unique().numel() == 300 * 300
    numbers = uniforms(seeds.flatten(), 1).view(300, 300).double()
    neighbors = torch.stack([numbers[1:, :-1], numbers[:-1, 1:]]).flatten(1)
    # 5 standard deviations of a correlation over 299 * 299 pairs
    assert torch.corrcoef(neighbors)[0, 1].abs() < 5 / 299
