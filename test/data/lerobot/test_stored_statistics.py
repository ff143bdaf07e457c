"""Stored statistics are LeRobot's, exact ones the data's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot_folders import record, statistics, write_folder

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.data.lerobot.stored_statistics import (
    feature_statistics,
    merge,
    read_stored,
)
from torchrl_vla.schema import FeatureStatistics, MetadataError

ORIGIN = Origin("Reader", "'meta'", "Fetch it again.")
ACTION = Feature("action", "float32", (1,), key="action")


def tensors(values):
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_episodes_are_merged_to_the_statistics_of_all_frames(lengths, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, 2)) for n in lengths]
    merged = merge(
        [{"action": tensors(statistics(part, True))} for part in parts], ORIGIN
    )
    whole = tensors(statistics(np.concatenate(parts), False))
    assert set(merged["action"]) == set(whole)  # no quantiles
    for name, expected in whole.items():
        torch.testing.assert_close(merged["action"][name], expected)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_both_formats_give_the_same_statistics(tmp_path, version):
    recording = record((4, 3), cameras=())
    folder = write_folder(tmp_path / "push", recording, version=version)
    stored = read_stored(folder)["action"]
    expected = tensors(statistics(recording.columns["action"], False))
    for name, value in expected.items():
        torch.testing.assert_close(stored[name], value)


def test_stored_quantiles_are_kept_however_wrong_they_are():
    samples = torch.arange(101.0).unsqueeze(-1)
    values = tensors(statistics(samples.numpy(), True))
    values["q01"] += 30  # as LeRobot's averages do, too far inside
    kept = feature_statistics({"action": values}, [ACTION], samples, "stored")
    assert kept.q01.item() == 31.0
    exact = feature_statistics({"action": values}, [ACTION], samples, "exact")
    assert exact == FeatureStatistics.from_samples(samples)
    assert exact.q01.item() == 1.0


def test_quantiles_that_are_not_stored_are_computed():
    samples = torch.arange(101.0).unsqueeze(-1)
    values = tensors(statistics(samples.numpy(), False))
    values["mean"] += 1  # shows that the rest is what is stored
    kept = feature_statistics({"action": values}, [ACTION], samples, "stored")
    assert (kept.q01.item(), kept.q99.item(), kept.mean.item()) == (1.0, 99.0, 51.0)


def test_quantiles_that_rounding_puts_outside_are_moved_to_the_edge():
    values = tensors({"mean": [0.3], "std": [0.0], "min": [0.3], "max": [0.3]})
    low, high = torch.nextafter(values["min"], torch.tensor([0.0, 1.0]))
    samples = torch.full((4, 1), 0.3)
    values |= {"q01": low.view(1), "q99": high.view(1), "count": torch.tensor([4])}
    kept = feature_statistics({"action": values}, [ACTION], samples, "stored")
    assert kept.q01.item() == kept.q99.item() == 0.3


@pytest.mark.parametrize("change", [{"q01": [-9.0]}, {"std": [-1.0]}, {"q99": [99.0]}])
def test_statistics_that_cannot_be_true_are_refused(change):
    samples = torch.arange(11.0).unsqueeze(-1)
    values = tensors(statistics(samples.numpy(), True) | change)
    with pytest.raises(MetadataError, match=r"of 'action': .*statistics='exact'"):
        feature_statistics({"action": values}, [ACTION], samples, "stored")


def test_a_folder_without_statistics_asks_for_exact_ones(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    (folder / "meta/stats.json").unlink()
    stored = read_stored(folder)
    assert stored == {}
    samples = torch.arange(11.0).unsqueeze(-1)
    with pytest.raises(
        MetadataError, match=r"'mean', got none.*'max', got none.*statistics='exact'"
    ):
        feature_statistics(stored, [ACTION], samples, "stored")
    assert feature_statistics(stored, [ACTION], samples, "exact").count == 11


def test_statistics_of_images_are_read_too(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    path = folder / "meta/stats.json"
    image = {"mean": [[[0.5]], [[0.4]], [[0.3]]]}
    path.write_text(json.dumps({"observation.image": image}))
    assert read_stored(folder)["observation.image"]["mean"].shape == (3, 1, 1)


def test_stored_extremes_that_exclude_frames_are_refused():
    samples = torch.arange(11.0).unsqueeze(-1)
    values = tensors(statistics(samples.numpy() + 100.0, True))  # of other data
    message = r"\[100.0\] to \[110.0\] for data from \[0.0\] to \[10.0\].*--stati"
    with pytest.raises(MetadataError, match=message):
        feature_statistics({"action": values}, [ACTION], samples, "stored")


def test_stored_statistics_of_another_width_are_refused():
    samples = torch.arange(11.0).unsqueeze(-1)
    values = tensors(statistics(samples.expand(-1, 2).numpy(), True))
    with pytest.raises(MetadataError, match="the width 1 of the feature, got 2"):
        feature_statistics({"action": values}, [ACTION], samples, "stored")


def test_stored_statistics_of_concatenated_features_are_concatenated():
    samples = torch.stack([torch.arange(11.0), torch.arange(11.0) * 2], 1)
    parts = [
        Feature(name, "float32", (1,), key="action", columns=columns)
        for name, columns in (("arm", (0, 1)), ("hand", (1, 2)))
    ]
    stored = {
        part.name: tensors(statistics(samples[:, slice(*part.columns)].numpy(), True))
        for part in parts
    }
    found = feature_statistics(stored, parts, samples, "stored")
    assert found == FeatureStatistics.from_samples(samples)
