"""A dataset as demonstrations: metadata, selection, split, buffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lerobot_folders import edit_info, record, write_folder

from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.schema import FeatureStatistics, SchemaError
from torchrl_vla.transforms import ActionChunkTransform

RECORDING = record()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("dataset") / "push", RECORDING)


@pytest.fixture
def open_dataset(folder, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "cache"

    def make(**options):
        return LeRobotDemonstrations.from_folder(folder, cache_folder=cache, **options)

    return make


@pytest.mark.parametrize("images", ["image", "video"])
def test_v21_and_v30_of_the_same_content_are_the_same_dataset(tmp_path, images):
    datasets = [
        LeRobotDemonstrations.from_folder(
            write_folder(tmp_path / version, RECORDING, version=version, images=images),
            cache_folder=tmp_path / "cache",
            statistics="exact",
            dataset_id="push",
        )
        for version in ("v2.1", "v3.0")
    ]
    old, new = datasets
    assert (old.frames == new.frames).all()
    assert old.metadata == new.metadata
    assert old.instructions == new.instructions
    samples = [dataset.replay_buffer(32, seed=0).sample() for dataset in datasets]
    assert (samples[0] == samples[1]).all()
    assert ("observation", "image", "front") in samples[0].keys(True)


def test_the_metadata_say_what_the_folder_declares(open_dataset):
    metadata = open_dataset().metadata
    assert metadata.dataset_id == "push"
    assert metadata.embodiment_id == "fake"
    assert metadata.control_frequency_hz == 10.0
    assert metadata.cameras == ("front", "wrist")
    assert metadata.action_names == ("action_0", "action_1")
    assert metadata.state_dim == 3
    assert metadata.action_statistics.count == 15


def test_exact_statistics_are_those_of_the_chosen_episodes(open_dataset):
    dataset = open_dataset(statistics="exact", episodes=[1, 2])
    rows = RECORDING.columns["episode_index"] > 0
    action = torch.from_numpy(RECORDING.columns["action"][rows])
    expected = FeatureStatistics.from_samples(action)
    assert dataset.metadata.action_statistics == expected


def test_the_stored_statistics_are_kept_by_name(open_dataset):
    stored = open_dataset().stored_statistics
    assert set(stored) == set(RECORDING.columns)
    assert stored["next.reward"]["mean"].item() == pytest.approx(
        float(RECORDING.columns["next.reward"].mean()), abs=1e-6
    )


def test_one_image_without_a_name_is_at_image_itself(tmp_path):
    recording = record((2,), cameras=("image",))
    dataset = LeRobotDemonstrations.from_folder(
        write_folder(tmp_path / "push", recording), cache_folder=tmp_path
    )
    assert dataset.metadata.cameras == ()
    sample = dataset.replay_buffer(4).sample()
    assert sample["observation", "image"].shape == (4, 3, 16, 24)
    none = LeRobotDemonstrations.from_folder(
        tmp_path / "push", cache_folder=tmp_path, cameras=()
    )
    assert none.cameras == ()


def test_names_that_do_not_fit_the_dimensions_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    path = folder / "meta/info.json"
    path.write_text(path.read_text().replace('"action_1"', '"action_0"'))
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    assert dataset.metadata.action_names is None
    assert dataset.metadata.action_dim == 2


def test_a_part_keeps_frames_images_and_statistics(open_dataset):
    whole = open_dataset()
    part = whole.select_episodes(torch.tensor([2, 0]))
    assert part.episodes.tolist() == [0, 2]
    assert (len(part), part.num_episodes) == (5 + 7, 2)
    assert part.metadata is whole.metadata
    sample = part.replay_buffer(16, seed=0).sample()
    rows = sample["dataset_index"]
    stored = torch.from_numpy(RECORDING.images["observation.images.wrist"])
    found = sample["observation", "image", "wrist"]
    assert torch.equal(found, stored[rows].permute(0, 3, 1, 2))


def test_a_split_is_by_episode_and_by_seed(open_dataset):
    dataset = open_dataset()
    splits = [dataset.split(1 / 3, seed) for seed in (0, 0, 1, 2)]
    parts = [[part.episodes.tolist() for part in split] for split in splits]
    for first, second in parts:
        assert sorted([*first, *second]) == [0, 1, 2]
        assert len(first) == 1
    assert parts[0] == parts[1]
    assert len({first[0] for first, _ in parts}) > 1


def test_the_storage_gives_chunks(open_dataset):
    dataset = open_dataset()
    chunks = ActionChunkTransform(3, storage=dataset.storage)
    sample = dataset.replay_buffer(64, transform=chunks, seed=0).sample()
    ends = sample["frame_index"] == torch.tensor([5, 3, 7])[sample["episode_index"]] - 1
    assert torch.equal(sample["action_is_pad"][:, 1], ends)


def test_the_summary_counts_episodes_by_instruction(open_dataset):
    text = str(open_dataset())
    assert "'push': 3 episodes, 15 frames" in text
    assert "        2        12  push the block" in text
    assert "        1         3  open the drawer" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": [0, 3]}, r"some of the 3 episodes from 0 to 2, got \[3\]"),
        ({"episodes": []}, "some of the 3 episodes from 0 to 2, got none"),
        ({"cameras": ["top"]}, r"cameras of \['front', 'wrist'\], got \['top'\]"),
        ({"decoder": "opencv"}, "a decoder of"),
        (
            {"statistics": "robust"},
            r"statistics of \('exact', 'stored'\), got 'robust'",
        ),
    ],
)
def test_arguments_that_are_no_choice_are_refused(open_dataset, options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(**options)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_a_split_that_leaves_a_part_empty_is_refused(open_dataset, fraction):
    with pytest.raises(ValueError, match=f"got {fraction} of 3 episodes"):
        open_dataset().split(fraction)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a LeRobot dataset at"):
        LeRobotDemonstrations.from_folder(tmp_path / "absent")


def test_a_camera_that_sees_the_future_is_refused(tmp_path):
    recording = record((2,), cameras=("front",))
    image = recording.images.pop("observation.images.front")
    recording.images["next.image"] = image
    folder = write_folder(tmp_path / "push", recording)
    with pytest.raises(SchemaError, match=r"below 'observation.', got 'next.image'"):
        LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)


def test_an_action_that_is_no_vector_is_refused(tmp_path):
    recording = record((2,), cameras=())
    recording.columns["action"] = np.zeros((2, 1), np.float32)
    folder = write_folder(tmp_path / "push", recording)
    path = folder / "meta/info.json"
    edit_info(folder)
    text = path.read_text()
    at = text.index('"action": {"dtype": "float32", "shape": [1]')
    path.write_text(text[:at] + text[at:].replace("[1]", "[1, 1]", 1))
    with pytest.raises(SchemaError, match=r"one dimension at feature 'action', got"):
        LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
