from __future__ import annotations

import pytest

from torchrl_vla.execution.action_reference import check_reference


@pytest.mark.parametrize("reference", ["absolute", "delta"])
def test_chunks_without_an_anchor_may_be_joined(reference):
    assert check_reference("Owner", reference) is None


def test_chunks_that_are_relative_to_a_state_may_not():
    match = r"Owner: expected an action_reference of 'absolute' or 'delta', got 'rel"
    with pytest.raises(ValueError, match=match):
        check_reference("Owner", "relative")


def test_an_unknown_reference_is_refused():
    match = r"Owner: expected an action_reference of \['absolute', .*\], got 'velocity'"
    with pytest.raises(ValueError, match=match):
        check_reference("Owner", "velocity")
