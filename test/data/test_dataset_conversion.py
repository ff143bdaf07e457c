from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lerobot_folders import record, write_folder
from tensordict import TensorDict

from torchrl_vla.data import (
    DemonstrationDataset,
    LeRobotDemonstrations,
    aggregate,
    convert_demonstrations,
)
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import (
    IncompatibleMetadataError,
    InstructionTable,
    RobotDatasetMetadata,
)

CENTIMETRES = RobotDatasetMetadata(
    "arm",
    action_names=("x", "y"),
    action_units="cm",
    action_reference="absolute",
    state_names=("x", "y"),
    state_units="cm",
    embodiment_id="arm",
)
METRES = replace(
    CENTIMETRES,
    action_names=("y", "x"),
    action_units=("m", "m"),
    state_units=("m", "m"),
)


def recorded(metadata=CENTIMETRES):
    frames = TensorDict(
        {
            "observation": {"state": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
            "action": torch.tensor([[10.0, 20.0], [30.0, 40.0]]),
            "episode_index": torch.tensor([0, 0]),
            "frame_index": torch.tensor([0, 1]),
            "language_instruction": InstructionTable(["go"]).ids.expand(2),
        },
        [2],
    )
    return DemonstrationDataset(frames, metadata, InstructionTable(["go"]))


def test_frames_and_what_is_sampled_are_in_the_other_conventions():
    dataset = recorded()
    converted = convert_demonstrations(dataset, METRES)
    expected = torch.tensor([[0.2, 0.1], [0.4, 0.3]])
    torch.testing.assert_close(converted.frames["action"], expected)
    torch.testing.assert_close(
        converted.replay_buffer(2)[:]["observation", "state"],
        torch.tensor([[0.01, 0.02], [0.03, 0.04]]),
    )
    assert converted.metadata.action_names == ("y", "x")
    torch.testing.assert_close(
        converted.metadata.action_statistics.mean, torch.tensor([0.3, 0.2]).double()
    )
    assert dataset.frames["action"][0].tolist() == [10.0, 20.0]
    assert converted.provenance["converted"][0] == (
        "action_names: ('x', 'y') becomes ('y', 'x')"
    )


def test_without_a_difference_it_is_the_dataset_itself():
    dataset = recorded()
    assert convert_demonstrations(dataset, CENTIMETRES) is dataset


def test_what_has_no_conversion_is_listed():
    other = replace(METRES, embodiment_id="another", action_units=("deg", "deg"))
    with pytest.raises(IncompatibleMetadataError, match=r"without a(?s:.)*- embod"):
        convert_demonstrations(recorded(), other)


def test_chunks_are_named_where_they_are_needed():
    relative = replace(CENTIMETRES, action_reference=("relative",) * 2)
    with pytest.raises(SettingsError, match=r"frame by frame, got one .* behind an A"):
        convert_demonstrations(recorded(), relative)


def test_pictures_that_are_read_when_sampled_stay_with_the_converted_numbers(tmp_path):
    folder = write_folder(tmp_path / "data", record((3, 2), cameras=("front",)))
    options = {"cache_folder": tmp_path / "cache"}
    dataset = LeRobotDemonstrations.from_folder(folder, **options)
    size, states = dataset.metadata.action_dim, dataset.metadata.state_dim
    units = {"action_units": ("cm",) * size, "state_units": ("cm",) * states}
    dataset.metadata = replace(dataset.metadata, **units)
    units = {"action_units": ("m",) * size, "state_units": ("m",) * states}
    metres = replace(dataset.metadata, **units)
    converted = convert_demonstrations(dataset, metres)
    before, after = (d.replay_buffer(1)[:] for d in (dataset, converted))
    for key in ("action", ("observation", "state")):
        torch.testing.assert_close(after[key], before[key] / 100)
    image = ("observation", "image", "front")
    assert torch.equal(after[image], before[image])
    whole = aggregate(dataset, dataset)
    with pytest.raises(SettingsError, match="Convert the datasets before they are agg"):
        convert_demonstrations(whole, metres)
