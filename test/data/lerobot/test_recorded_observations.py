"""The transform that adds images and history to sampled frames."""

from __future__ import annotations

import pytest
import torch
from lerobot_folders import history_of, record, write_folder
from tensordict import TensorDict

from torchrl_vla.data import LeRobotDemonstrations, RecordedObservations
from torchrl_vla.schema import MissingKeyError
from torchrl_vla.testing import check_transform

RECORDING = record((4, 2, 3), cameras=("front",))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("observations")
    folder = write_folder(path / "push", RECORDING)
    return LeRobotDemonstrations.from_folder(folder, cache_folder=path)


def indices(dataset, rows):
    return dataset.frames[torch.tensor(rows)].select("episode_index", "frame_index")


@pytest.mark.parametrize("history_size", [1, 3])
def test_it_keeps_the_contract_of_transforms(dataset, history_size):
    transform = dataset.observations(history_size)
    writes = [("observation", "image", "front")]
    if history_size > 1:
        names = [("image", "front"), ("state",), ("environment_state",)]
        writes += [("observation_history", *name) for name in names]
        writes += ["history_is_pad"]
    check_transform(
        transform,
        indices(dataset, [0, 5]),
        reads=["episode_index", "frame_index"],
        writes=writes,
    )


def test_any_batch_shape(dataset):
    rows = [[0, 3, 8], [5, 4, 1]]
    sample = dataset.observations(2)(indices(dataset, rows))
    assert sample["history_is_pad"].shape == (2, 3, 2)
    images = torch.from_numpy(RECORDING.images["observation.images.front"])
    for i in range(2):
        for j in range(3):
            past, is_pad = history_of(RECORDING, rows[i][j], 2)
            found = sample["observation_history", "image", "front"][i, j]
            assert torch.equal(found, images[past].permute(0, 3, 1, 2))
            assert torch.equal(sample["history_is_pad"][i, j], is_pad)


def test_a_frame_of_another_dataset_is_refused(dataset):
    stray = TensorDict(
        {"episode_index": torch.tensor([1]), "frame_index": torch.tensor([2])}, [1]
    )
    with pytest.raises(MissingKeyError, match="got frame 2 of episode 1"):
        dataset.observations()(stray)


def test_a_sample_without_indices_is_refused(dataset):
    with pytest.raises(MissingKeyError, match=r"expected \['episode_index', 'frame_"):
        dataset.observations()(TensorDict({"action": torch.zeros(2, 1)}, [2]))


def test_a_history_of_nothing_is_refused(dataset):
    with pytest.raises(ValueError, match="history_size"):
        RecordedObservations(dataset.frames, None, camera_keys={}, history_size=0)


def test_without_cameras_and_history_there_is_no_transform(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    blind = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    assert blind.observations() is None
    sample = blind.observations(2)(indices(blind, [1]))
    assert set(sample["observation_history"].keys()) == {"state", "environment_state"}


def test_an_environment_keeps_its_own_observations(dataset):
    step = TensorDict({"episode_index": torch.tensor([0])}, [1])
    assert dataset.observations(2)._call(step) is step
