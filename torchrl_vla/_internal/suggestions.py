"""Suggestion of the known name that a mistyped one is closest to."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or nothing.

    Args:
        name: that was given.
        known: the names that exist.

    Examples:
        >>> did_you_mean("tabeltop", ["tabletop", "metaworld"])
        " Did you mean 'tabletop'?"
        >>> did_you_mean("kitchen", ["tabletop", "metaworld"])
        ''
    """
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
