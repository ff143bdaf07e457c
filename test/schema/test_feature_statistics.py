from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchrl_vla.schema import FeatureStatistics, MetadataError, check_statistics

GOOD = {
    "mean": [0.5],
    "std": [0.1],
    "min": [0.0],
    "max": [1.0],
    "q01": [0.1],
    "q99": [0.9],
    "count": 10,
}


def test_statistics_of_five_numbers_by_hand():
    stats = FeatureStatistics.from_samples(
        torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    )
    assert stats.mean.item() == 2.0
    assert stats.std.item() == pytest.approx(2.0**0.5)  # population, not 2.5 ** 0.5
    assert (stats.min.item(), stats.max.item(), stats.count) == (0.0, 4.0, 5)
    # the 1 % quantile lies 0.01 * (5 - 1) = 0.04 of the way from 0 to 1
    assert stats.q01.item() == pytest.approx(0.04)
    assert stats.q99.item() == pytest.approx(3.96)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_dict_and_json_lose_no_bit(samples):
    stats = FeatureStatistics.from_samples(torch.from_numpy(samples))
    assert FeatureStatistics.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_quantiles_are_those_of_all_samples_not_means_of_episodes():
    first, second = torch.zeros(100, 1), torch.full((300, 1), 1.0)
    stats = FeatureStatistics.from_samples(torch.cat([first, second]))
    assert stats.q99.item() == 1.0  # the mean of the episodes' 0 and 1 would be 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [float("nan")]}, r"finite 'mean', got .*at dimensions \[0\]"),
        ({"min": [2.0]}, r"expected min <= q01, got min=\[2.0\]"),
        ({"q01": [0.95]}, "expected q01 <= q99"),
        ({"max": [0.5]}, "expected q99 <= max"),
        ({"std": [-1.0]}, "expected std >= 0"),
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"std": [1.0, 1.0]}, "expected statistics of one length"),
        ({"std": 1.0}, "expected one-dimensional statistics"),
        ({"mean": [1.5]}, r"expected mean <= max, got mean=\[1.5\] and max=\[1.0\]"),
        ({"mean": [-0.5]}, "expected min <= mean"),
        ({"mean": [None]}, r"expected 'mean' to be numbers, got \[None\]"),
        ({"mean": ["a"]}, r"expected 'mean' to be numbers, got \['a'\]"),
    ],
)
def test_what_cannot_be_true_is_refused(change, message):
    with pytest.raises(MetadataError, match=message):
        FeatureStatistics(**{**GOOD, **change})


def test_all_problems_are_listed_at_once():
    with pytest.raises(MetadataError, match=r"min <= q01.*std >= 0"):
        FeatureStatistics(**{**GOOD, "min": [2.0], "std": [-1.0]})


def test_a_missing_field_is_named():
    values = {k: v for k, v in GOOD.items() if k != "q99"}
    with pytest.raises(MetadataError, match=r"expected 'q99' in the values"):
        FeatureStatistics.from_dict(values)


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 3, 4)])
def test_samples_of_another_shape_are_refused(shape):
    with pytest.raises(MetadataError, match=r"expected samples \[N, D\]"):
        FeatureStatistics.from_samples(torch.zeros(shape))


def test_a_non_finite_sample_is_refused_with_its_row():
    samples = torch.zeros(4, 2)
    samples[2, 1] = float("inf")
    with pytest.raises(MetadataError, match=r"in 1 rows, first \[2\]"):
        FeatureStatistics.from_samples(samples)


def test_statistics_move():
    stats = FeatureStatistics(**GOOD)
    assert stats.to("cpu") == stats


def test_a_quantile_that_a_histogram_puts_outside_of_a_constant_is_clamped():
    # LeRobot's histogram of a joint that is 0.0 throughout (measured).
    constant = {"min": [0.0, 1.0], "max": [0.0, 1.0], "mean": [0.0, 1.0 + 1e-12]}
    checked = check_statistics("Demo", {**constant, "q99": [3.96e-14, 1.0 + 1e-9]})
    assert checked["q99"].tolist() == [0.0, 1.0]
    assert checked["mean"].tolist() == [0.0, 1.0]
    with pytest.raises(
        MetadataError, match=r"Demo: expected q99 <= max, got q99=\[0.1"
    ):
        check_statistics("Demo", {**constant, "q99": [0.1, 1.0]})


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"mean": [0.0, 1.0]}, {"dim": 7}, "the width 7 of the feature, got 2: they"),
        ({"mean": 0.0}, {"dim": 7}, "one-dimensional statistics, got shapes"),
        ({"mean": [0.0]}, {"needed": ("mean", "std")}, "expected 'std', got none"),
        ({"low": [1.0], "high": [1.0]}, {}, "expected low < high"),
        ({"q10": [2.0], "q50": [1.0]}, {}, "expected q10 <= q50"),
        ({"mean": [0.0], "count": [0]}, {}, r"expected count >= 1, got \[0.0\]"),
        ({"mean": [0.0], "count": "?"}, {}, r"expected 'count' to be numbers, got '\?"),
        ({"std": [0.0, -1.0]}, {}, r"std >= 0, got \[-1.0\] at dimensions \[1\]"),
    ],
)
def test_statistics_of_any_source_pass_the_same_checks(values, options, message):
    with pytest.raises(MetadataError, match=rf"Demo: statistics of 'x': .*{message}"):
        check_statistics("Demo", values, feature="x", **options)


def test_a_dimension_that_the_mask_leaves_out_may_be_anything():
    values = {"mean": [0.0, float("nan")], "std": [1.0, -1.0]}
    assert check_statistics("Demo", values, mask=torch.tensor([True, False]))
    with pytest.raises(MetadataError, match=r"'mean'.*\[1\].*std >= 0"):
        check_statistics("Demo", values)


def test_statistics_of_a_camera_lose_their_two_last_dimensions():
    checked = check_statistics("Demo", {"mean": [[[0.1]], [[0.2]], [[0.3]]]}, dim=3)
    assert checked["mean"].tolist() == [0.1, 0.2, 0.3]


def test_a_minimum_that_excludes_samples_is_refused():
    values = {"min": [0.0, 0.0], "max": [1.0, 1.0]}
    inside = torch.tensor([[0.0, 0.5], [1.0 + 1e-7, 0.5]])
    assert check_statistics("Demo", values, samples=inside)
    outside = torch.tensor([[0.0, 0.5], [1.0, 1.5]])
    message = r"got \[0.0\] to \[1.0\] for data from \[0.5\] to \[1.5\] at .*\[1\]"
    with pytest.raises(MetadataError, match=message):
        check_statistics("Demo", values, samples=outside)


@given(st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7))
def test_no_order_but_the_ascending_one_passes(numbers):
    names = ("min", "q01", "q10", "q50", "q90", "q99", "max")
    values = {name: [x] for name, x in zip(names, numbers, strict=True)}
    gaps = np.diff(numbers)
    if (gaps >= 0).all():
        assert check_statistics("Demo", values)["q50"].item() == numbers[3]
    elif gaps.min() < -1e-2:
        with pytest.raises(MetadataError, match=r"Demo: expected .* <= "):
            check_statistics("Demo", values)


def test_quantiles_of_a_dimension_that_rarely_moves_are_its_extremes():
    samples = torch.linspace(-1.0, 1.0, 1001)[:, None].repeat(1, 2)
    samples[:, 1] *= 1e-5
    samples[500, 1] = 0.3  # 1 of 1001 samples
    stats = FeatureStatistics.from_samples(samples)
    assert stats.is_sparse.tolist() == [False, True]
    covered = stats.cover_sparse()
    assert covered.q99.tolist() == [stats.q99[0].item(), pytest.approx(0.3)]
    assert covered.q01.tolist() == [stats.q01[0].item(), pytest.approx(-1e-5)]


def test_a_constant_dimension_is_not_sparse():
    constant = FeatureStatistics.from_samples(torch.full((10, 1), 0.1))
    assert constant.is_sparse.tolist() == [False]
