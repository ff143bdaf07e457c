from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.rollout import Purpose, episode_seeds, iteration_seed

PURPOSES = get_args(Purpose)
runs, counts = st.integers(0, 2**40), st.integers(1, 40)


@given(st.sampled_from(["demonstrations", "evaluation"]), *[st.integers(0, 535)] * 2)
def test_two_runs_of_a_purpose_share_no_seed(purpose, one, other):
    # A run's seeds are consecutive: its first and its last are its bounds.
    seeds, others = (
        [*episode_seeds(run, 2, purpose), *episode_seeds(run, 2, purpose, 999_998)]
        for run in (one, other)
    )
    assert len(set(seeds)) == 4
    assert seeds[-1] - seeds[0] == 999_999
    assert one == other or seeds[-1] < others[0] or others[-1] < seeds[0]


@given(st.permutations(PURPOSES), runs, runs, counts, st.integers(0, 2**33))
def test_two_purposes_share_no_seed_whatever_the_runs(purposes, one, other, count, at):
    seeds = set(episode_seeds(one, count, purposes[0], at))
    assert seeds.isdisjoint(episode_seeds(other, count, purposes[1]))


@given(st.sampled_from(PURPOSES), runs, counts, st.integers(0, 2**33))
def test_the_highest_bits_of_a_seed_are_its_purpose(purpose, run, count, first):
    bits = {seed >> 29 for seed in episode_seeds(run, count, purpose, first)}
    allowed = {"demonstrations": {0}, "evaluation": {1}, "training": {2, 3}}
    assert bits <= allowed[purpose]


@given(st.sampled_from(PURPOSES), runs, st.integers(0, 9), st.integers(0, 9))
def test_later_episodes_of_a_run_continue_its_seeds(purpose, run, first, count):
    whole = episode_seeds(run, first + count, purpose)
    assert whole[first:] == episode_seeds(run, count, purpose, first)


def test_demonstrations_keep_the_seeds_of_the_first_datasets():
    assert episode_seeds(3, 2, "demonstrations") == [3_000_009, 3_000_010]
    assert episode_seeds(3, 2, "evaluation", first=5) == [
        2**29 + 3_000_014,
        2**29 + 3_000_015,
    ]


def test_an_unknown_purpose_is_refused():
    message = r"episode_seeds: expected purpose to be one of \('demons.*, got 'fun'\."
    with pytest.raises(ValueError, match=message):
        episode_seeds(0, 1, "fun")


def test_the_seed_of_an_iteration_fits_a_generator():
    assert iteration_seed(2, 5) == 2_000_011
    assert iteration_seed(3000, 0) == 3_000_009_000 % 2**31
    torch.Generator().manual_seed(iteration_seed(2**40, 7))
