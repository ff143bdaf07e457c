from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.diagnosis.value_relation import explain, unit_of


def sequences(seed=0, dims=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 4, dims, generator=generator)


@given(st.integers(0, 50), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_equal_numbers_differ_in_nothing_at_any_scale(seed, offset, scale):
    x = sequences(seed) * scale + offset
    assert explain(x, x.clone(), what="actions") is None


@given(
    st.floats(0.2, 5.0).filter(lambda k: abs(k - 1) > 0.05),
    st.floats(0.3, 3.0),
)
def test_an_affine_difference_is_a_normalization_with_its_numbers(slope, offset):
    x = sequences()
    found = explain(x, slope * x + offset, what="actions", names=("x", "y", "z"))
    assert found.stage == "normalization"
    assert f"x: {slope:.4g} x {offset:+.4g}" in found.message


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (180 / math.pi, "degrees against radians"),
        (math.pi / 180, "radians against degrees"),
        (1000.0, "millimetres against metres"),
    ],
)
def test_a_known_factor_is_a_unit_also_in_some_dimensions_only(factor, text):
    x = sequences()
    turned = x.clone()
    turned[..., 1:] *= factor
    found = explain(x, turned, what="actions")
    assert (found.stage, unit_of(factor)) == ("units", text)
    assert "in dimensions 1, 2" in found.message
    assert text in found.message


def test_another_reference_of_actions_is_named():
    x, state = sequences(), torch.randn(20, 5)
    for got, text in (
        (x.cumsum(1), "sums of the actions (absolute)"),
        (x.diff(dim=1, prepend=x[:, :1] * 0), "(delta)"),
        (x - state[:, None, :3], "actions minus the state (relative)"),
        (x + state[:, None, :3], "actions plus the state (absolute)"),
    ):
        found = explain(x, got, what="actions", origin=state)
        assert found.stage == "action representation"
        assert text in found.message


def test_actions_that_were_also_clipped_keep_their_line():
    x = sequences()
    found = explain(x, (1.5 * x + 0.1).clamp(-1, 1), what="actions")
    assert found.stage == "normalization"
    assert "1.5 x +0.1" in found.message


def test_nan_and_noise_have_no_simple_relation():
    x = sequences()
    for got in (torch.full_like(x, torch.nan), torch.randn_like(x)):
        found = explain(x, got, what="actions")
        assert found.message.endswith("in no simple relation")
