from __future__ import annotations

import pytest

from torchrl_vla.envs.libero.libero_suites import (
    MAX_STEPS,
    SUITES,
    base_suite,
    find_suite,
)


def test_there_are_five_suites_and_four_variants_of_four():
    assert len(SUITES) == 5 + 16
    assert all(find_suite(suite) == suite for suite in SUITES)
    assert {base_suite(suite) for suite in SUITES} == set(MAX_STEPS)


@pytest.mark.parametrize("name", ["kitchen", "90_swap", "libero_", "object/6"])
def test_another_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"expected a suite of \['spatial', 'object'"):
        find_suite(name)
