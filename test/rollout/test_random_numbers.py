from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.rollout.random_numbers import uniforms

WORD = 1 << 64


def splitmix(seed, count):
    """SplitMix64 with Python's integers, from a state that is itself mixed."""

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) % WORD)
    draws = [mix((state + k * golden) % WORD) for k in range(1, count + 1)]
    return [(draw >> 40) / 2**24 for draw in draws]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4), st.integers(1, 6))
def test_draws_are_those_of_splitmix64(seeds, count):
    draws = uniforms(torch.tensor(seeds), count)
    assert draws.tolist() == [splitmix(seed, count) for seed in seeds]


def test_neighboring_seeds_are_evenly_spread_and_unrelated():
    draws = uniforms(torch.arange(20_000), 4).double()
    counts = torch.histc(draws, bins=20, min=0.0, max=1.0)
    assert (counts / 4000 - 1).abs().max() < 0.08  # 5 standard deviations
    correlation = torch.corrcoef(torch.cat([draws[:-1], draws[1:]], -1).T)
    off_diagonal = correlation - torch.eye(8)
    assert off_diagonal.abs().max() < 0.04
