from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.evaluation import (
    confidence_sequence,
    e_value,
    mcnemar_test,
    rate_confidence_sequence,
)

SMALL = st.integers(0, 40)
MEANS = st.floats(-0.99, 0.99)


@given(st.integers(0, 80), st.integers(0, 80), SMALL)
def test_against_zero_the_wealth_is_that_of_an_even_mixture_of_coins(a, b, equal):
    # The integral of (2 q)^a (2 (1 - q))^b over q in [0, 1]. The bets are a grid.
    expected = 2.0 ** (a + b) / ((a + b + 1) * math.comb(a + b, a))
    assert e_value(a, b, equal) == pytest.approx(expected, rel=5e-3)


@given(SMALL, SMALL, SMALL, MEANS, st.floats(0, 1))
def test_the_game_is_fair_if_the_mean_is_right(a, b, equal, mean, share):
    # Any odds of 1, 0 and -1 with this mean: between 0 and as many ties as can be.
    ties = share * (1 - abs(mean))
    wins, losses = (1 - ties + mean) / 2, (1 - ties - mean) / 2
    after = (
        wins * e_value(a + 1, b, equal, mean)
        + losses * e_value(a, b + 1, equal, mean)
        + ties * e_value(a, b, equal + 1, mean)
    )
    assert after == pytest.approx(e_value(a, b, equal, mean), rel=1e-9)


def test_before_the_first_episode_the_wealth_is_one():
    assert e_value(0, 0, 0, 0.3) == 1.0


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 0, 1)])
def test_what_cannot_be_is_refuted_at_once(counts):
    assert e_value(*counts, mean=-1.0) == math.inf
    assert confidence_sequence(*counts)[0] == pytest.approx(-1.0, abs=0.1)


def test_a_great_many_episodes_do_not_overflow():
    assert e_value(100_000, 0) == math.inf
    low, high = confidence_sequence(60_000, 30_000, 10_000)
    assert 0.285 < low < 0.3 < high < 0.315


@given(SMALL, SMALL, SMALL, st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=40, deadline=None)
def test_the_interval_leaves_zero_out_when_the_evidence_says_so(a, b, equal, sure):
    low, high = confidence_sequence(a, b, equal, sure)
    assert (low > 0 or high < 0) == (e_value(a, b) >= 1 / (1 - sure))
    assert -1 <= low <= (a - b) / max(1, a + b + equal) <= high <= 1
    turned = confidence_sequence(b, a, equal, sure)
    assert turned == pytest.approx((-high, -low), abs=3e-6)


@given(SMALL, SMALL, SMALL)
@settings(max_examples=20, deadline=None)
def test_the_interval_holds_exactly_the_means_that_are_not_refuted(a, b, equal):
    low, high = confidence_sequence(a, b, equal)
    for mean in (i / 50 for i in range(-50, 51)):
        if min(abs(mean - low), abs(mean - high)) > 1e-5:
            is_inside = low <= mean <= high
            assert is_inside == (e_value(a, b, equal, mean) < 20), mean


def chance_to_reject(reject, tosses):
    """Toss a fair coin, look after each toss; how likely is it ever to reject?"""
    alive, wrong = {0: 1.0}, 0.0
    for n in range(1, tosses + 1):
        reached = {}
        for heads, probability in alive.items():
            for more in (heads, heads + 1):
                reached[more] = reached.get(more, 0.0) + probability / 2
        alive = {}
        for heads, probability in reached.items():
            if reject(heads, n - heads):
                wrong += probability
            else:
                alive[heads] = probability
    return wrong


def test_looking_after_each_episode_is_safe_here_and_not_with_a_fixed_test():
    # Exact probabilities, no simulation: equal policies, 120 pairs that differ.
    betting = chance_to_reject(lambda a, b: e_value(a, b) >= 20, 120)
    assert 0.005 < betting <= 0.05
    assert chance_to_reject(lambda a, b: mcnemar_test(a, b) <= 0.05, 120) > 0.15


def test_a_rate_is_covered_at_all_moments_at_once():
    # Rate 0.5 is mean 0: the same game.
    low, high = rate_confidence_sequence(90, 100)
    assert (2 * low - 1, 2 * high - 1) == pytest.approx(confidence_sequence(90, 10))
    assert 0.78 < low < 0.826 < 0.945 < high  # Wilson's is 0.826 to 0.945
    assert rate_confidence_sequence(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: e_value(-1, 0), r"three counts >= 0 and .* got better=-1"),
        (lambda: e_value(1, 0, 0, 1.5), r"mean in \[-1, 1\], got .*mean=1\.5"),
        (
            lambda: confidence_sequence(1, 0, 0, 1.0),
            r"confidence_sequence: .* got 1\.0",
        ),
        (lambda: rate_confidence_sequence(3, 2), r"successes=3, episodes=2"),
    ],
)
def test_counts_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
