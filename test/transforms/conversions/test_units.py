from __future__ import annotations

from itertools import product
from math import pi

import pytest

from torchrl_vla.transforms.conversions.units import unit_factor

KNOWN = ("rad", "degrees", "rad/s", "deg/s", "m", "cm", "mm", "m/s", "mm/s", "1", "px")


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [("deg", "rad", pi / 180), ("mm", "cm", 0.1), ("m/s", "cm/s", 100.0)],
)
def test_a_factor_is_what_it_is_by_hand(source, target, factor):
    assert unit_factor(source, target) == pytest.approx(factor, rel=1e-15)


def test_factors_of_both_directions_are_inverses_or_both_unknown():
    for source, target in product(KNOWN, KNOWN):
        there, back = unit_factor(source, target), unit_factor(target, source)
        assert (there is None) == (back is None)
        assert there is None or there * back == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("source", "target"), [("deg", "1"), ("rad", "m"), ("px", "m"), ("rad", "rad/s")]
)
def test_what_measures_something_else_has_no_factor(source, target):
    assert unit_factor(source, target) is None
