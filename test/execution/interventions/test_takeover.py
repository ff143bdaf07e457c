from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.execution import EpisodeMixing
from torchrl_vla.rollout import uniforms
from torchrl_vla.schema import MissingKeyError


def steps(seeds):
    seeds = torch.as_tensor(seeds)
    return TensorDict(episode_seed=seeds, batch_size=seeds.shape)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), st.integers(0, 2**31)
)
def test_a_draw_depends_on_its_own_episode_alone(seeds, seed):
    gate = EpisodeMixing(0.5, seed=seed)
    together = gate(steps(seeds))
    alone = [gate(steps([one])).item() for one in seeds]
    assert together.flatten().tolist() == alone
    assert together.shape == (len(seeds), 1)
    assert gate(steps(torch.tensor(seeds[0]))).tolist() == [alone[0]]


def test_the_share_of_the_experts_episodes_is_the_probability():
    for probability in (0.0, 0.2, 0.7, 1.0):
        drawn = EpisodeMixing(probability, seed=3)(steps(torch.arange(20_000)))
        spread = math.sqrt(probability * (1 - probability) / 20_000)
        share = drawn.double().mean().item()
        assert abs(share - probability) <= 4 * spread


def test_an_episode_stays_the_experts_at_every_higher_probability():
    low, high = (EpisodeMixing(p)(steps(torch.arange(500))) for p in (0.3, 0.6))
    assert (high | ~low).all()
    assert low.sum() < high.sum()


def test_another_seed_hands_over_other_episodes():
    first, second = (
        EpisodeMixing(0.5, seed=s)(steps(torch.arange(4000))) for s in (0, 1)
    )
    # Independent draws agree half the time, with a deviation of 1 / sqrt(4 * 4000).
    assert abs((first == second).double().mean().item() - 0.5) < 4 / 126


def test_the_draw_is_not_the_first_number_of_the_initial_state():
    seeds = torch.arange(4000)
    drawn = EpisodeMixing(0.5)(steps(seeds)).flatten()
    initial = uniforms(seeds, 1).flatten() < 0.5
    assert abs((drawn == initial).double().mean().item() - 0.5) < 4 / 126


def test_a_step_without_an_episode_seed_raises():
    with pytest.raises(MissingKeyError, match=r"at 'episode_seed', got only \['x'\]"):
        EpisodeMixing(0.5)(TensorDict(x=torch.zeros(1)))


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_that_is_none_raises(probability):
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {probability}"):
        EpisodeMixing(probability)
