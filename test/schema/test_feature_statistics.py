from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchrl_vla.schema import FeatureStatistics, MetadataError

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
        ({"mean": [float("nan")]}, r"expected finite 'mean'.*at \[0\]"),
        ({"min": [2.0]}, r"expected min <= q01, got min=\[2.0\]"),
        ({"q01": [0.95]}, "expected q01 <= q99"),
        ({"max": [0.5]}, "expected q99 <= max"),
        ({"std": [-1.0]}, "expected std >= 0"),
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"std": [1.0, 1.0]}, "expected statistics of one length"),
        ({"std": 1.0}, "expected one-dimensional statistics"),
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
