"""Factors between the units that metadata name."""

from __future__ import annotations

from math import pi

#: Unit to (quantity, its size in the quantity's base unit).
_UNITS = {
    **dict.fromkeys(("rad", "radian", "radians"), ("angle", 1.0)),
    **dict.fromkeys(("deg", "degree", "degrees"), ("angle", pi / 180)),
    "rad/s": ("angular velocity", 1.0),
    "deg/s": ("angular velocity", pi / 180),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("length", 1.0)),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "m/s": ("velocity", 1.0),
    "cm/s": ("velocity", 0.01),
    "mm/s": ("velocity", 0.001),
}


def unit_factor(source: str, target: str) -> float | None:
    """Return what turns a number in one unit into a number in another.

    Args:
        source: unit of the number.
        target: unit that is wanted.

    Returns:
        The factor; None = they measure different things, or one is unknown.

    Examples:
        >>> unit_factor("cm", "m"), unit_factor("furlong", "furlong")
        (0.01, 1.0)
        >>> unit_factor("deg", "1") is None
        True
    """
    if source == target:
        return 1.0
    quantity, size = _UNITS.get(source, (None, 0.0))
    other, other_size = _UNITS.get(target, (None, 1.0))
    return size / other_size if quantity is not None and quantity == other else None
