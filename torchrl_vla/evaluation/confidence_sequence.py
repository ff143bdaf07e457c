"""Anytime-valid confidence sequences and e-values.

An interval for a fixed number of episodes covers the truth in 95 of 100 evaluations.
It covers it in far fewer if one looks after every episode and stops when one likes the
result. A confidence sequence covers the truth at all looks at once.

The e-value against a mean ``m`` is the wealth of a gambler who bets, without debts,
that the mean of the outcomes is not ``m``. If it is ``m``, the game is fair, and the
wealth ever exceeds ``1 / alpha`` with probability at most ``alpha`` (Ville's
inequality). The confidence sequence holds all ``m`` whose e-value is below that.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, log1p

from torchrl_vla.evaluation.success_statistics import check_confidence

#: Bets that the gambler splits the initial wealth between, as shares in (0, 1) of the
#: largest that cannot ruin. Any fixed set is fair; this one is even.
_BETS = tuple((i + 0.5) / 256 for i in range(256))

#: Tolerance of the ends of an interval.
_TOLERANCE = 1e-6


def e_value(better: int, worse: int, equal: int = 0, mean: float = 0.0) -> float:
    """Return the e-value against a mean: the wealth of a bet on another one.

    Each episode is worth 1 (``better``), 0 (``equal``) or -1 (``worse``). Half of the
    initial wealth of 1 is bet on a larger mean and half on a smaller one. Against a
    true ``mean`` the wealth exceeds ``1 / alpha`` at any time with probability at most
    ``alpha``: an e-value of 20 is as good as p = 0.05, at any number of looks. For mean
    0 equal episodes change nothing, as in McNemar's test.

    Args:
        better: episodes worth 1.
        worse: episodes worth -1.
        equal: episodes worth 0.
        mean: that the evidence is against, in ``[-1, 1]``.

    Raises:
        ValueError: a negative count, or a mean outside of ``[-1, 1]``.

    Examples:
        >>> round(e_value(6, 0), 2), round(e_value(5, 4), 2)
        (9.14, 0.41)

    Source: I. Waudby-Smith and A. Ramdas, J. R. Stat. Soc. B 86 (2024).
    """
    counts = (better, worse, equal)
    if min(counts) < 0 or not -1.0 <= mean <= 1.0:
        raise ValueError(
            "e_value: expected three counts >= 0 and a mean in [-1, 1], got "
            f"better={better}, worse={worse}, equal={equal}, mean={mean}."
        )
    # A bet on a smaller mean is one on a larger, with the outcomes' signs reversed.
    larger = _log_wealth(better, worse, equal, mean)
    smaller = _log_wealth(worse, better, equal, -mean)
    most = max(larger, smaller)
    if most > 700:  # beyond what a float holds
        return float("inf")
    return (exp(larger) + exp(smaller)) / 2


def confidence_sequence(
    better: int, worse: int, equal: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the anytime-valid interval of the mean of outcomes 1, 0 and -1.

    It covers the true mean at all looks at once with probability ``confidence``, and
    excludes 0 exactly when :func:`e_value` reaches ``1 / (1 - confidence)``. It is
    about 1.6 times as wide as Newcombe's of as many episodes.

    Returns:
        ``(low, high)`` in ``[-1, 1]``.

    Raises:
        ValueError: a negative count, or a confidence that is not in (0, 1).

    Examples:
        >>> low, high = confidence_sequence(better=20, worse=4, equal=76)
        >>> round(low, 3), round(high, 3)
        (0.02, 0.315)

    Source: see :func:`e_value`.
    """
    check_confidence("confidence_sequence", confidence)
    enough = 1 / (1 - confidence)

    def is_refuted(mean: float) -> bool:
        return e_value(better, worse, equal, mean) >= enough

    # No bet wins at the observed mean, and the wealth is convex in the mean: the means
    # that are not refuted are an interval around it.
    observed = (better - worse) / max(1, better + worse + equal)
    return _end(is_refuted, observed, -1.0), _end(is_refuted, observed, 1.0)


def rate_confidence_sequence(
    successes: int, episodes: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the anytime-valid interval of a success rate.

    The counterpart of :func:`wilson_interval` for an evaluation that its own outcomes
    stop.

    Raises:
        ValueError: not ``0 <= successes <= episodes``, or a confidence that is not in
            (0, 1).

    Examples:
        >>> low, high = rate_confidence_sequence(20, 20)
        >>> round(low, 3), round(high, 3)
        (0.768, 1.0)
    """
    if not 0 <= successes <= episodes:
        raise ValueError(
            "rate_confidence_sequence: expected 0 <= successes <= episodes, got "
            f"successes={successes}, episodes={episodes}."
        )
    low, high = confidence_sequence(successes, episodes - successes, 0, confidence)
    return (1 + low) / 2, (1 + high) / 2


def _log_wealth(better: int, worse: int, equal: int, mean: float) -> float:
    """Return the log of the mean wealth of the bets on a mean above ``mean``.

    A share ``s`` of the largest bet multiplies the wealth by ``1 - s + s (1 + x) /
    (1 + mean)`` where the episode is worth ``x``: on average by 1 if the mean is right.
    """
    if mean == -1.0:  # only worth -1 is possible then
        return float("inf") if better or equal else _log_wealth(0, worse, 0, 0.0)
    gain = 1 / (1 + mean)
    logs = [
        better * log1p(share * (2 * gain - 1))
        + equal * log1p(share * (gain - 1))
        + worse * log1p(-share)
        for share in _BETS
    ]
    most = max(logs)
    return most + log(sum(exp(value - most) for value in logs) / len(logs))


def _end(is_refuted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the end of the interval between a mean inside and the outermost one."""
    if not is_refuted(outside):
        return outside
    if min(inside, outside) < 0 < max(inside, outside):
        # Whether 0 is excluded must not depend on rounding.
        inside, outside = (inside, 0.0) if is_refuted(0.0) else (0.0, outside)
    while abs(outside - inside) > _TOLERANCE:
        middle = (inside + outside) / 2
        if is_refuted(middle):
            outside = middle
        else:
            inside = middle
    return inside
