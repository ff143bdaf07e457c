from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset, MixtureReplay, aggregate
from torchrl_vla.schema import (
    FeatureStatistics,
    IncompatibleMetadataError,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)


def make(episodes, values, text="push", **metadata):
    """A dataset whose frames are of these episodes and have these numbers."""
    count = len(episodes)
    table = InstructionTable([text])
    numbers = torch.tensor(values, dtype=torch.float32).unsqueeze(-1)
    episode = torch.tensor(episodes)
    same = episode.unsqueeze(0) == episode.unsqueeze(1)
    frames = TensorDict(
        {
            "observation": {"state": numbers + 0.5},
            "language_instruction": table.ids.expand(count),
            "action": numbers,
            "episode_index": episode,
            "frame_index": same.tril(-1).sum(-1),
        },
        [count],
    )
    metadata = RobotDatasetMetadata(
        metadata.pop("dataset_id", "arm"), action_dim=1, state_dim=1, **metadata
    )
    return DemonstrationDataset(frames, metadata, table)


def test_episodes_are_numbered_anew_in_the_order_of_the_datasets():
    whole = aggregate(make([7, 7, 3], [0, 1, 2]), make([0, 0, 7], [3, 4, 5], "pull"))
    assert whole.frames["episode_index"].tolist() == [1, 1, 0, 2, 2, 3]
    assert whole.frames["frame_index"].tolist() == [0, 1, 0, 0, 1, 0]
    assert whole.frames["action"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.instructions.texts == ("push", "pull")
    decoded = whole.instructions.decode(whole.frames["language_instruction"])
    assert decoded == ["push"] * 3 + ["pull"] * 3


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_the_statistics_are_those_of_all_frames_together(parts):
    whole = aggregate(*[make([0] * len(values), values) for values in parts])
    samples = torch.tensor([v for values in parts for v in values]).unsqueeze(-1)
    found = whole.metadata
    assert found.action_statistics == FeatureStatistics.from_samples(samples)
    assert found.state_statistics == FeatureStatistics.from_samples(samples + 0.5)
    assert whole.num_episodes == len(parts)


def test_the_parts_are_left_as_they_were():
    one, two = make([5], [0]), make([5], [1])
    two.frames["is_labeled"] = torch.tensor([[False]])
    aggregate(one, two)
    assert one.frames["episode_index"].tolist() == [5]
    assert two.frames["episode_index"].tolist() == [5]
    assert one.frames.get("is_labeled", None) is None
    assert one.instructions.texts == ("push",)


def test_demonstrations_are_labeled_no_intervention_and_of_weight_one():
    one, two = make([0, 0], [0, 1]), make([0], [9])
    two.frames["is_labeled"] = torch.tensor([[False]])
    two.frames["is_intervention"] = torch.tensor([[True]])
    two.frames["sample_weight"] = torch.tensor([0.5])
    whole = aggregate(one, two)
    assert whole.frames["is_labeled"].flatten().tolist() == [True, True, False]
    assert whole.frames["is_intervention"].flatten().tolist() == [False, False, True]
    assert whole.frames["sample_weight"].tolist() == [1.0, 1.0, 0.5]
    assert whole.metadata.action_statistics.max.item() == 1.0  # of the labeled ones


def test_an_aggregate_can_be_written_and_aggregated_again(tmp_path):
    for step in range(2):
        whole = aggregate(make([0], [0]), make([0, 0], [1, 2]))
        folder = whole.to_folder(tmp_path / str(step))
        whole = aggregate(DemonstrationDataset.from_folder(folder), make([4], [3]))
    assert whole.frames["episode_index"].tolist() == [0, 1, 1, 2]
    whole.to_folder(tmp_path / "whole")
    again = DemonstrationDataset.from_folder(tmp_path / "whole")
    assert again.metadata == whole.metadata
    assert (again.frames == whole.frames).all()


def test_parts_of_an_aggregate_are_sampled_in_shares_and_in_one_space():
    whole = aggregate(make([0] * 6, range(6)), make([0], [20]))
    parts = [whole.select_episodes(torch.tensor([i])) for i in (0, 1)]
    mixture = MixtureReplay(parts, [1, 1], batch_size=400, chunk_size=1)
    batch = mixture.sample()
    assert abs((batch["embodiment_index"] == 1).float().mean().item() - 0.5) < 0.1
    statistics = whole.metadata.action_statistics
    corrected = batch["action"][batch["embodiment_index"] == 1].unique()
    expected = (20 - statistics.mean) / statistics.std
    torch.testing.assert_close(corrected, expected.float())


def test_another_robot_is_refused():
    with pytest.raises(IncompatibleMetadataError, match=r"action_units"):
        aggregate(make([0], [0], action_units="m"), make([0], [0], action_units="mm"))


def test_frames_with_other_entries_are_refused():
    one, two = make([0], [0]), make([0], [0])
    two.frames["observation", "state"] = torch.zeros(1, 2)
    two.frames["advantage"] = torch.zeros(1, 1)
    with pytest.raises(
        SchemaError,
        match=r"others in dataset 1: .*'state'\): torch.float32 \[2\] against "
        r"torch.float32 \[1\]; advantage: torch.float32 \[1\] against nothing",
    ):
        aggregate(one, replace_dataset(two))


def replace_dataset(dataset):
    """The same frames under metadata that do not tell their sizes."""
    metadata = replace(dataset.metadata, state_dim=None, action_dim=None)
    return DemonstrationDataset(dataset.frames, metadata, dataset.instructions)


def test_nothing_cannot_be_aggregated():
    with pytest.raises(ValueError, match=r"at least one dataset, got none"):
        aggregate()
