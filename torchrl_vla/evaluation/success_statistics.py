"""Intervals and tests of success rates, for a number of episodes fixed beforehand.

To look at the outcomes and stop when they are clear, use
:mod:`torchrl_vla.evaluation.confidence_sequence`.
"""

from __future__ import annotations

from math import comb, hypot, sqrt
from statistics import NormalDist


def wilson_interval(
    successes: int, episodes: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate.

    Unlike the normal approximation it holds for few episodes and for rates near 0 and
    1: 20 successes in 20 episodes are compatible with a rate of 84 %.

    Args:
        successes: number of episodes that succeeded.
        episodes: number of episodes.
        confidence: probability that the interval covers the true rate.

    Returns:
        ``(low, high)`` in ``[0, 1]``.

    Raises:
        ValueError: not ``0 <= successes <= episodes`` with ``episodes >= 1``, or the
            confidence is not in (0, 1).

    Examples:
        >>> low, high = wilson_interval(20, 20)
        >>> round(low, 4), round(high, 4)
        (0.8389, 1.0)

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    _check_counts("wilson_interval", successes, episodes)
    check_confidence("wilson_interval", confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    share = z * z / episodes
    center = (rate + share / 2) / (1 + share)
    half = z / (1 + share) * sqrt(rate * (1 - rate) / episodes + share / episodes / 4)
    # The ends are exact where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


def newcombe_interval(
    successes_a: int,
    episodes_a: int,
    successes_b: int,
    episodes_b: int,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two independent rates.

    It joins the Wilson intervals of both rates, so it stays in ``[-1, 1]`` and holds
    where one of the rates is 0 or 1. For evaluations on the same episodes use
    :func:`newcombe_paired_interval`, which is mostly narrower.

    Args:
        successes_a: of the first policy.
        episodes_a: of the first policy.
        successes_b: of the second policy.
        episodes_b: of the second policy.
        confidence: probability that the interval covers the true difference.

    Returns:
        ``(low, high)`` of the first rate minus the second.

    Raises:
        ValueError: impossible counts, or a confidence that is not in (0, 1).

    Examples:
        >>> low, high = newcombe_interval(56, 70, 48, 80)
        >>> round(low, 4), round(high, 4)
        (0.0524, 0.3339)

    Source: R. G. Newcombe, Stat. Med. 17:873 (1998), method 10.
    """
    _check_counts("newcombe_interval", successes_a, episodes_a)
    _check_counts("newcombe_interval", successes_b, episodes_b)
    check_confidence("newcombe_interval", confidence)
    low_a, high_a = wilson_interval(successes_a, episodes_a, confidence)
    low_b, high_b = wilson_interval(successes_b, episodes_b, confidence)
    rate_a, rate_b = successes_a / episodes_a, successes_b / episodes_b
    difference = rate_a - rate_b
    low = difference - hypot(rate_a - low_a, high_b - rate_b)
    high = difference + hypot(high_a - rate_a, rate_b - low_b)
    return max(low, -1.0), min(high, 1.0)


def newcombe_paired_interval(
    both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two rates of the same episodes.

    Two policies on the same episodes mostly succeed and fail together. The correlation
    ``phi`` of the table removes this common part, which does not tell the policies
    apart. A positive ``phi`` is corrected for continuity.

    Args:
        both: episodes in which both succeeded.
        only_a: in which only the first did.
        only_b: in which only the second did.
        neither: in which none did.
        confidence: probability that the interval covers the true difference.

    Returns:
        ``(low, high)`` of the first rate minus the second.

    Raises:
        ValueError: a negative count, no episode, or a confidence that is not in
            (0, 1).

    Examples:
        >>> low, high = newcombe_paired_interval(36, 12, 2, 0)
        >>> round(low, 4), round(high, 4)
        (0.0569, 0.3404)

    Source: R. G. Newcombe, Stat. Med. 17:2635 (1998), method 10.
    """
    counts = (both, only_a, only_b, neither)
    if min(counts) < 0 or sum(counts) == 0:
        raise ValueError(
            "newcombe_paired_interval: expected four counts >= 0 of at least one "
            f"episode, got both={both}, only_a={only_a}, only_b={only_b}, "
            f"neither={neither}."
        )
    check_confidence("newcombe_paired_interval", confidence)
    episodes = sum(counts)
    rate_a, rate_b = (both + only_a) / episodes, (both + only_b) / episodes
    low_a, high_a = wilson_interval(both + only_a, episodes, confidence)
    low_b, high_b = wilson_interval(both + only_b, episodes, confidence)
    phi = _corrected_phi(both, only_a, only_b, neither)
    difference = rate_a - rate_b
    low = difference - _joined(rate_a - low_a, high_b - rate_b, phi)
    high = difference + _joined(high_a - rate_a, rate_b - low_b, phi)
    return max(low, -1.0), min(high, 1.0)


def mcnemar_test(only_a: int, only_b: int, *, mid_p: bool = False) -> float:
    """Return the two-sided p-value of two policies being equally good.

    Only the episodes in which exactly one of the two succeeded count: between equally
    good policies, each of these is the toss of a fair coin.

    Args:
        only_a: episodes in which only the first succeeded.
        only_b: in which only the second did.
        mid_p: False = the exact test, whose error rate never exceeds its level; True =
            counts half of the observed outcome, less conservative (Fagerland, Lydersen
            and Laake, BMC Med. Res. Methodol. 13:91, 2013).

    Raises:
        ValueError: a negative count.

    Examples:
        >>> mcnemar_test(0, 5)
        0.0625
        >>> mcnemar_test(0, 5, mid_p=True)
        0.03125

    Source: Q. McNemar, Psychometrika 12 (1947), with binomial probabilities.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(
            "mcnemar_test: expected two counts >= 0, got "
            f"only_a={only_a}, only_b={only_b}."
        )
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    # Integers of any size, and one division at the end: exact.
    ways, doubled = 1, 0  # to have `i` heads; in either tail, so far
    for i in range(fewer + 1):
        doubled += 2 * ways
        last, ways = ways, ways * (tosses - i) // (i + 1)
    if mid_p:
        doubled -= last
    return min(1.0, doubled / 2**tosses)


def fisher_test(
    successes_a: int, episodes_a: int, successes_b: int, episodes_b: int
) -> float:
    """Return the two-sided p-value of two independent rates being equal.

    For episodes that are no pairs. Exact, and conservative for few episodes.

    Raises:
        ValueError: impossible counts.

    Examples:
        >>> round(fisher_test(3, 4, 1, 4), 4)  # Fisher's lady tasting tea
        0.4857

    Source: R. A. Fisher, The Design of Experiments (1935).
    """
    _check_counts("fisher_test", successes_a, episodes_a)
    _check_counts("fisher_test", successes_b, episodes_b)
    successes = successes_a + successes_b
    fewest, most = max(0, successes - episodes_b), min(successes, episodes_a)
    ways = [
        comb(episodes_a, i) * comb(episodes_b, successes - i)
        for i in range(fewest, most + 1)
    ]
    observed = ways[successes_a - fewest]
    return sum(way for way in ways if way <= observed) / sum(ways)


def check_confidence(caller: str, confidence: float) -> None:
    """Raise ``ValueError`` unless the confidence is a probability."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"{caller}: expected confidence in (0, 1), got {confidence}. For "
            "95 percent pass 0.95."
        )


def _check_counts(caller: str, successes: int, episodes: int) -> None:
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(
            f"{caller}: expected 0 <= successes <= episodes and episodes >= 1, "
            f"got successes={successes}, episodes={episodes}."
        )


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Return the correlation of the table, shrunk by half an episode per cell."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b)
    margins *= only_a + neither
    if margins == 0:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - (both + only_a + only_b + neither) / 2, 0.0)
    return product / sqrt(margins)


def _joined(side_a: float, side_b: float, phi: float) -> float:
    """Return half of the difference's interval, from the halves of both rates."""
    # Rounding may take a square of zero below zero.
    return sqrt(max(0.0, side_a**2 - 2 * phi * side_a * side_b + side_b**2))
