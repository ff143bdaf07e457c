from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.diagnosis.vector_checks import (
    check_statistics,
    check_timestamps,
    dimension_table,
)
from torchrl_vla.schema import FeatureStatistics


def checked(samples, **numbers):
    stored = replace(FeatureStatistics.from_samples(samples), **numbers)
    return list(check_statistics("action", stored, samples, "Compute them."))


def test_a_sparse_dimension_is_a_note_from_99_percent_on():
    samples = torch.randn(200, 2)
    samples[:, 1] = 0.5
    samples[0, 1] = 3.0
    (note,) = checked(samples)
    assert note.is_note
    assert note.message == (
        "dimension 1 moves so rarely (sparse) that its quantiles 0.5..0.5 miss its "
        "range 0.5..3"
    )
    samples[:3, 1] = 3.0  # 98.5 %
    assert checked(samples) == []


@pytest.mark.parametrize("name", ["mean", "std", "min", "max"])
def test_each_stored_number_is_compared_with_the_data(name):
    samples = torch.linspace(0.0, 1.0, 101)[:, None]
    moved = {"mean": 0.75, "std": 0.9, "min": -0.5, "max": 1.5}[name]
    (problem,) = checked(samples, **{name: torch.tensor([moved])})
    assert f"expected {name} " in problem.message
    assert f"got {moved} (dimensions [0])" in problem.message
    assert problem.remedy == "Compute them."


def test_float32_rounding_of_large_numbers_is_no_difference():
    samples = 1e6 + torch.linspace(0.0, 1.0, 33)[:, None]
    stored = FeatureStatistics.from_samples(samples.double().float())
    assert list(check_statistics("action", stored, samples, "")) == []


def test_statistics_of_another_width_are_named():
    stored = FeatureStatistics.from_samples(torch.randn(9, 3))
    (problem,) = check_statistics("action", stored, torch.randn(9, 2), "")
    assert problem.message == "expected statistics of 2 dimensions, got 3"


def frames_at(times):
    count = len(times)
    return TensorDict(
        {
            "timestamp": torch.tensor(times),
            "frame_index": torch.arange(count),
            "episode_index": torch.zeros(count, dtype=torch.int64),
        },
        [count],
    )


def test_a_late_timestamp_is_named_by_its_row():
    assert list(check_timestamps(frames_at([0.0, 0.1, 0.2]), 10.0)) == []
    (problem,) = check_timestamps(frames_at([0.0, 0.15, 0.2]), 10.0)
    assert problem.where == "'timestamp' row 1 (episode 0, frame 1)"
    assert problem.message == (
        "expected 0.1000 s (frame / 10 Hz), got 0.1500 s, and 0 more"
    )


def test_the_table_shows_the_data_beside_what_is_stored():
    samples = torch.tensor([[0.0], [2.0]])
    stored = replace(FeatureStatistics.from_samples(samples), max=torch.tensor([9.0]))
    (row,) = dimension_table(samples, stored, ("x",), ("m",))
    assert (row["dimension"], row["unit"]) == ("x", "m")
    assert (row["max"], row["stored max"], row["mean"]) == (2.0, 9.0, 1.0)
