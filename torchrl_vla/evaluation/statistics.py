"""How sure a success rate is."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson_interval(
    successes: int, episodes: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate.

    Unlike the textbook interval it holds for few episodes and for rates near 0 and 1:
    20 successes in 20 episodes are compatible with a rate of 84 %.

    Args:
        successes: how many succeeded.
        episodes: of how many.
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
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(
            "wilson_interval: expected 0 <= successes <= episodes and episodes >= 1, "
            f"got successes={successes}, episodes={episodes}."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"wilson_interval: expected confidence in (0, 1), got {confidence}. For "
            "95 percent pass 0.95."
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    spread = z * z / episodes
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(rate * (1 - rate) / episodes + spread / episodes / 4)
    # The ends are exact where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high
