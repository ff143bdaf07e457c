"""Checks of constructor arguments."""

from __future__ import annotations

from typing import Any


def check_positive_int(caller: str, name: str, value: Any) -> None:
    """Refuse a value that is not an int of at least one.

    Args:
        caller: the component that asks; opens the error message.
        name: the argument.
        value: what was passed for it.

    Raises:
        ValueError: it is something else.

    Examples:
        >>> check_positive_int("MultiAction", "chunk_size", 0)
        Traceback (most recent call last):
        ...
        ValueError: MultiAction: expected a positive int at argument 'chunk_size', \
got 0.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{caller}: expected a positive int at argument {name!r}, got {value!r}."
        )
