from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchrl_vla.data.lerobot_writer.episode_stats import (
    ImageHistogram,
    number_statistics,
)


def test_statistics_of_four_numbers_are_those_worked_out_by_hand():
    stats = number_statistics(np.array([[1.0], [2.0], [3.0], [10.0]], np.float32))
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(
        {
            "min": 1,
            "max": 10,
            "mean": 4,
            "std": np.sqrt((9 + 4 + 1 + 36) / 4),
            "count": 4,
            "q01": 1.03,  # 3 % of the way from the first to the second
            "q10": 1.3,
            "q50": 2.5,
            "q90": 3 + 0.7 * 7,
            "q99": 3 + 0.97 * 7,
        },
        rel=1e-12,
    )


def test_truth_values_are_numbers_and_matrices_are_of_their_last_dimension():
    assert number_statistics(np.array([True, False]))["mean"].tolist() == [0.5]
    stats = number_statistics(np.arange(12.0).reshape(2, 2, 3))
    assert stats["mean"].tolist() == [4.5, 5.5, 6.5]
    assert stats["count"].tolist() == [2]


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 4), *[st.integers(1, 5)] * 2, st.just(3))
    )
)
def test_statistics_of_a_histogram_are_those_of_all_pixels(images):
    histogram = ImageHistogram()
    for image in images:
        histogram.add(image)
    stats = histogram.statistics()
    expected = number_statistics(images.reshape(-1, 3))
    assert stats.pop("count").tolist() == [len(images)]
    assert stats.keys() == expected.keys() - {"count"}
    for name, value in stats.items():
        assert value.shape == (3, 1, 1)
        np.testing.assert_allclose(
            value.ravel(), expected[name] / 255, rtol=0, atol=1e-12, err_msg=name
        )


def test_histograms_of_parts_add_up():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    whole, parts = ImageHistogram(), [ImageHistogram(), ImageHistogram()]
    for i, image in enumerate(images):
        whole.add(image)
        parts[i % 2].add(image)
    merged = ImageHistogram.merge(parts)
    assert merged.n_frames == 5
    np.testing.assert_array_equal(merged.counts, whole.counts)
