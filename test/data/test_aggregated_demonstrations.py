"""Aggregates keep the cameras of datasets that read them when sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lerobot_folders import record, write_folder

from torchrl_vla.data import (
    DemonstrationDataset,
    Hdf5Demonstrations,
    LeRobotDemonstrations,
    aggregate,
)
from torchrl_vla.schema import IncompatibleMetadataError


def open_lerobot(tmp_path, seed, images="image", cameras=("front",), **options):
    recording = record((3, 2), seed=seed, cameras=cameras)
    folder = write_folder(tmp_path / f"{images}{seed}", recording, images=images)
    options["cache_folder"] = tmp_path / "cache"
    return recording, LeRobotDemonstrations.from_folder(folder, **options)


FRONT = ("observation", "image", "front")


def pictures(recording, camera="front"):
    return recording.images[f"observation.images.{camera}"].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("images", ["image", "video"])
def test_the_pictures_of_both_lerobot_datasets_are_those_of_their_rows(
    tmp_path, images
):
    (first, one), (second, two) = (
        open_lerobot(tmp_path, seed, images) for seed in (0, 1)
    )
    whole = aggregate(one, two)
    want = np.concatenate([pictures(first), pictures(second)])
    assert np.array_equal(whole.replay_buffer(1)[:][FRONT], want)
    rows = torch.tensor([9, 0, 5, 5, 4])
    sample = whole.replay_buffer(1)[rows]
    assert np.array_equal(sample[FRONT], want[rows])
    action = np.concatenate([first.columns["action"], second.columns["action"]])
    assert np.array_equal(sample["action"], action[rows])
    assert whole.num_episodes == 4
    assert "task_index" not in whole.frames  # numbers the tasks of one dataset


def test_a_selection_and_a_folder_of_the_aggregate_have_the_pictures(tmp_path):
    (first, one), (second, two) = (open_lerobot(tmp_path, seed) for seed in (0, 1))
    part = aggregate(one, two).select_episodes(torch.tensor([1, 2]))
    want = np.concatenate([pictures(first)[3:], pictures(second)[:3]])
    assert np.array_equal(part.replay_buffer(1)[:][FRONT], want)
    stored = DemonstrationDataset.from_folder(part.to_folder(tmp_path / "stored"))
    assert np.array_equal(stored.frames[FRONT], want)


def test_history_goes_back_in_the_episode_of_the_part(tmp_path):
    (_, one), (second, two) = (open_lerobot(tmp_path, seed) for seed in (0, 1))
    sample = aggregate(one, two).replay_buffer(1, history_size=2)[torch.tensor([6, 5])]
    history = sample["observation_history", "image", "front"]
    want = pictures(second)
    assert np.array_equal(history[0], want[[0, 1]])
    assert np.array_equal(history[1], want[[0, 0]])  # the episode begins at row 5
    assert sample["history_is_pad"].tolist() == [[False, False], [True, False]]


def test_demonstrations_of_lerobot_take_corrections_that_hold_their_images(tmp_path):
    _, one = open_lerobot(tmp_path, 0)
    frames = one.replay_buffer(1)[:2].exclude("timestamp", "task_index", "index")
    frames[FRONT] = torch.full_like(frames[FRONT], 7)
    corrections = DemonstrationDataset(frames, one.metadata, one.instructions)
    whole = aggregate(one, corrections)
    images = whole.replay_buffer(1)[:][FRONT]
    assert (images[5:] == 7).all()
    assert torch.equal(images[:5], one.replay_buffer(1)[:][FRONT])


def test_cameras_of_hdf5_files_are_kept(tmp_path):
    h5py = pytest.importorskip("h5py")
    datasets = []
    for number in (1, 2):
        path = tmp_path / f"lift{number}.hdf5"
        with h5py.File(path, "w") as file:
            demo = file.create_group("data/demo_0")
            demo["actions"] = [[0.0], [1.0]]
            demo["obs/view"] = np.full((2, 4, 6, 3), number, np.uint8)
        datasets.append(
            Hdf5Demonstrations.from_file(
                path,
                layout="robomimic",
                instruction="lift",
                state_keys=[],
                cameras={"front": "view"},
                flip_images="none",
            )
        )
    images = aggregate(*datasets).replay_buffer(1)[:][FRONT]
    assert images.shape == (4, 3, 4, 6)
    assert images[:, 0, 0, 0].tolist() == [1, 1, 2, 2]


def test_another_camera_is_refused_until_it_is_renamed(tmp_path):
    _, one = open_lerobot(tmp_path, 0)
    second, two = open_lerobot(tmp_path, 1, cameras=("wrist",))
    with pytest.raises(IncompatibleMetadataError, match=r"'front'.* against .'wrist'"):
        aggregate(one, two)
    rename = {"observation.images.wrist": "observation.images.front"}
    two = LeRobotDemonstrations.from_folder(
        tmp_path / "image1", rename=rename, cache_folder=tmp_path / "cache"
    )
    images = aggregate(one, two).replay_buffer(1)[:][FRONT]
    assert np.array_equal(images[5:], pictures(second, "wrist"))
