from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.evaluation import (
    fisher_test,
    mcnemar_test,
    newcombe_interval,
    newcombe_paired_interval,
    wilson_interval,
)


def test_published_intervals_are_met():
    # Brown, Cai and DasGupta (2001) and the usual tables, to three digits.
    assert wilson_interval(9, 10) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.161), abs=5e-4)
    assert wilson_interval(20, 20) == pytest.approx((0.839, 1.0), abs=5e-4)


COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_the_ends_solve_the_score_equation(counts):
    successes, n = counts
    rate, z = successes / n, 1.959963984540054
    for end in wilson_interval(successes, n):
        distance = abs(rate - end)
        assert distance == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-6)


@given(COUNTS)
def test_the_interval_mirrors_when_successes_and_failures_swap(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert 0.0 <= low <= successes / n <= high <= 1.0


def test_more_confidence_is_a_wider_interval():
    narrow, wide = (wilson_interval(7, 10, confidence=c) for c in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match=r"expected confidence in \(0, 1\), got"):
        wilson_interval(1, 2, confidence)


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="wilson_interval: expected"):
        wilson_interval(*counts)


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_newcombes_own_examples_of_independent_rates_are_met(counts, published):
    # Newcombe (1998), Stat. Med. 17:873, table II, method 10.
    assert newcombe_interval(*counts) == pytest.approx(published, abs=5.1e-5)


@pytest.mark.parametrize(
    ("table", "published"),
    [
        # Newcombe (1998), Stat. Med. 17:2635, table II, method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        # Bentur et al. (2009) and Cavo et al. (2012), as worked in Fagerland, Lydersen
        # and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
        ((1, 1, 7, 12), (-0.5069, -0.0256)),
        ((59, 6, 16, 80), (-0.1186, -0.0046)),
    ],
)
def test_published_examples_of_paired_rates_are_met(table, published):
    assert newcombe_paired_interval(*table) == pytest.approx(published, abs=5.1e-5)


TABLES = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@given(TABLES)
def test_the_paired_interval_is_that_of_a_naive_reckoning(table):
    both, only_a, only_b, neither = table
    n = sum(table)
    pairs = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    mean_a, mean_b = (sum(column) / n for column in zip(*pairs))
    together = sum((x - mean_a) * (y - mean_b) for x, y in pairs)  # (ad - bc) / n
    together -= 0.5 if together > 0.5 else max(together, 0)
    deviation = math.sqrt(n * mean_a * (1 - mean_a) * n * mean_b * (1 - mean_b))
    phi = (
        0
        if min(mean_a, mean_b) < 1e-9 or max(mean_a, mean_b) > 1 - 1e-9
        else (together / deviation)
    )
    ends = wilson_interval(both + only_a, n) + wilson_interval(both + only_b, n)
    down_a, up_a, down_b, up_b = (
        abs(end - mean) for end, mean in zip(ends, (mean_a,) * 2 + (mean_b,) * 2)
    )
    low = down_a**2 + up_b**2 - 2 * phi * down_a * up_b
    high = up_a**2 + down_b**2 - 2 * phi * up_a * down_b
    expected = (
        mean_a - mean_b - math.sqrt(max(low, 0)),
        mean_a - mean_b + math.sqrt(max(high, 0)),
    )
    assert newcombe_paired_interval(*table) == pytest.approx(expected, abs=1e-6)


@given(TABLES)
def test_the_intervals_of_a_difference_turn_when_the_policies_swap(table):
    both, only_a, only_b, neither = table
    n = sum(table)
    for low_high, turned in (
        (
            newcombe_paired_interval(both, only_a, only_b, neither),
            newcombe_paired_interval(both, only_b, only_a, neither),
        ),
        (
            newcombe_interval(both + only_a, n, both + only_b, n),
            newcombe_interval(both + only_b, n, both + only_a, n),
        ),
    ):
        assert turned == pytest.approx((-low_high[1], -low_high[0]))
        assert -1 <= low_high[0] <= (only_a - only_b) / n <= low_high[1] <= 1


@given(st.integers(1, 60), st.integers(0, 30), st.integers(0, 30))
def test_pairs_that_agree_never_widen_the_interval(agreed, only_a, only_b):
    table = (agreed, only_a, only_b, agreed)
    n = sum(table)
    low, high = newcombe_paired_interval(*table)
    wide = newcombe_interval(agreed + only_a, n, agreed + only_b, n)
    if agreed**2 >= only_a * only_b:  # the outcomes are not opposed
        assert high - low <= wide[1] - wide[0] + 1e-12


def multinomials(n):
    for both, only_a, only_b in product(range(n + 1), repeat=3):
        if both + only_a + only_b <= n:
            yield both, only_a, only_b, n - both - only_a - only_b


def test_the_paired_interval_covers_the_truth_as_often_as_it_says():
    n = 16
    worst, total, settings = 1.0, 0.0, 0
    intervals = {table: newcombe_paired_interval(*table) for table in multinomials(n)}
    for shares in [
        (0.25, 0.25, 0.25, 0.25),
        (0.4, 0.3, 0.1, 0.2),
        (0.6, 0.15, 0.05, 0.2),
        (0.1, 0.5, 0.1, 0.3),
        (0.8, 0.1, 0.05, 0.05),
    ]:
        truth = shares[1] - shares[2]
        covered = sum(
            math.factorial(n)
            * math.prod(p**k / math.factorial(k) for p, k in zip(shares, table))
            for table, (low, high) in intervals.items()
            if low <= truth <= high
        )
        worst, total, settings = min(worst, covered), total + covered, settings + 1
    # Newcombe's own evaluation: 0.95 on average, some settings below.
    assert worst > 0.92
    assert 0.94 < total / settings < 0.98


@pytest.mark.parametrize(
    ("only_a", "only_b", "exact", "mid"),
    [
        (0, 0, 1.0, 1.0),
        (0, 5, 2 / 32, 1 / 32),
        (4, 1, 12 / 32, (12 - 5) / 32),  # 2 (1 + 5) of 32; the last 5 counts half
        (2, 2, 1.0, 1.0),
        (1, 9, 22 / 1024, (22 - 10) / 1024),
    ],
)
def test_mcnemars_test_is_the_toss_of_coins(only_a, only_b, exact, mid):
    assert mcnemar_test(only_a, only_b) == exact
    assert mcnemar_test(only_a, only_b, mid_p=True) == mid
    assert mcnemar_test(only_b, only_a) == exact


@pytest.mark.parametrize("n", [5, 12, 40, 101])
def test_the_exact_test_is_wrong_at_most_as_often_as_it_says(n):
    for alpha in (0.01, 0.05, 0.2):
        wrong = sum(
            math.comb(n, k) for k in range(n + 1) if mcnemar_test(k, n - k) <= alpha
        )
        assert wrong / 2**n <= alpha


def test_mcnemars_test_goes_over_into_the_normal_one():
    # z = (5200 - 4800 - 1) / 100; 2 (1 - Phi(z)) = erfc(z / sqrt(2))
    assert mcnemar_test(5200, 4800) == pytest.approx(
        math.erfc(3.99 / math.sqrt(2)), rel=0.01
    )


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_fishers_test_counts_the_ways_to_deal_the_successes(n_a, n_b, data):
    a = data.draw(st.integers(0, n_a))
    b = data.draw(st.integers(0, n_b))
    dealt = [
        sum(place < n_a for place in places)
        for places in combinations(range(n_a + n_b), a + b)
    ]
    as_likely = [x for x in dealt if dealt.count(x) <= dealt.count(a)]
    assert fisher_test(a, n_a, b, n_b) == pytest.approx(len(as_likely) / len(dealt))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: newcombe_interval(3, 2, 1, 2), r"newcombe_interval: expected 0 <="),
        (lambda: newcombe_interval(1, 2, 1, 0), r"episodes >= 1, got successes=1"),
        (lambda: newcombe_interval(1, 2, 1, 2, 95), r"newcombe_interval: .* got 95"),
        (lambda: newcombe_paired_interval(0, 0, 0, 0), r"of at least one episode"),
        (lambda: newcombe_paired_interval(5, -1, 0, 0), r"got both=5, only_a=-1"),
        (lambda: newcombe_paired_interval(1, 0, 0, 0, 0), r"expected confidence in"),
        (lambda: mcnemar_test(-1, 3), r"two counts >= 0, got only_a=-1, only_b=3"),
        (lambda: fisher_test(1, 1, 2, 1), r"fisher_test: expected 0 <= successes"),
    ],
)
def test_counts_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
