"""Spellings of TorchRL's and LeRobot's classes are read, or their replacement named."""

from __future__ import annotations

import pytest
import torch
from lerobot_folders import decode, history_of, record, write_folder

from torchrl_vla.data import LeRobotDemonstrations, LeRobotExperienceReplay
from torchrl_vla.data.lerobot.replay_spellings import read_delta_timestamps
from torchrl_vla.errors import SettingsError

RECORDING = record((6, 4, 5), cameras=())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("spellings")
    folder = write_folder(path / "push", RECORDING)
    return LeRobotDemonstrations.from_folder(folder, cache_folder=path / "cache")


def test_a_repo_id_is_a_source(dataset, tmp_path, monkeypatch):
    write_folder(tmp_path / "user/push", RECORDING)
    monkeypatch.chdir(tmp_path)
    replay = LeRobotExperienceReplay(
        repo_id="user/push", batch_size=4, cache_folder=tmp_path / "cache"
    )
    assert torch.equal(replay[:]["action"], dataset.frames["action"])


def test_delta_timestamps_are_chunks_and_history(dataset):
    deltas_s = {
        "action": [-0.1, 0.0, 0.1],
        "observation.state": [-0.2, -0.1, 0.0],
        "observation.environment_state": [-0.2, -0.1, 0.0],
    }
    theirs = LeRobotExperienceReplay(dataset, 4, delta_timestamps=deltas_s)
    ours = LeRobotExperienceReplay(
        dataset, 4, chunk_size=3, first_step=-1, history_size=3
    )
    assert (theirs[:] == ours[:]).all()
    chunks = LeRobotExperienceReplay(
        dataset, 4, delta_timestamps={"action": [0.0, 0.1]}
    )
    for row in range(15):
        chunk, is_pad = decode(RECORDING, row, 2)
        assert torch.equal(chunks[[row]]["action_chunk"][0], chunk)
        assert torch.equal(chunks[[row]]["action_is_pad"][0], is_pad)
        rows, past_is_pad = history_of(RECORDING, row, 3)
        state = torch.from_numpy(RECORDING.columns["observation.state"][rows])
        found = theirs[[row]]
        assert torch.equal(found["observation_history", "state"][0], state)
        assert torch.equal(found["history_is_pad"][0], past_is_pad)


@pytest.mark.parametrize(
    ("deltas_s", "message"),
    [
        ({"action": [0.0, 0.2]}, r"consecutive frames at 10 Hz for 'action', got \[0"),
        ({"action": [0.0, 0.15]}, "consecutive frames at 10 Hz"),
        ({"action": []}, "consecutive frames at 10 Hz"),
        ({"observation.state": [0.0, 0.1]}, r"up to 0\.0, got .*history_size="),
        ({"observation.a": [0.0], "observation.b": [-0.1, 0.0]}, "alike"),
        ({"next.reward": [0.0]}, "of 'action' and of observations"),
    ],
)
def test_deltas_that_are_no_windows_of_ours_are_refused(deltas_s, message):
    with pytest.raises(SettingsError, match=message):
        read_delta_timestamps(deltas_s, 10.0)


@pytest.mark.parametrize("options", [{"slice_len": 3}, {"num_slices": 4}])
def test_slices_are_consecutive_frames_of_an_episode(dataset, options):
    replay = LeRobotExperienceReplay(dataset, 12, seed=0, **options)
    begins = set()
    for _ in range(20):
        slices = replay.sample().reshape(4, 3)
        assert (slices["frame_index"].diff(dim=1) == 1).all()
        assert (slices["episode_index"].diff(dim=1) == 0).all()
        begins |= set(slices["dataset_index"][:, 0].tolist())
    assert begins == {0, 1, 2, 3, 6, 7, 10, 11, 12}  # every place that fits
    parts = replay.split(0.5)
    assert (parts[0].sample().reshape(4, 3)["frame_index"].diff(dim=1) == 1).all()


def test_slices_have_chunks_of_the_whole_episode(dataset):
    replay = LeRobotExperienceReplay(dataset, 6, slice_len=3, chunk_size=2, seed=0)
    sample = replay.sample()
    for row, found in zip(sample["dataset_index"].tolist(), sample, strict=True):
        chunk, is_pad = decode(RECORDING, row, 2)
        assert torch.equal(found["action_chunk"], chunk)
        assert torch.equal(found["action_is_pad"], is_pad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "/data"}, "no argument 'root', got '/data'. Pass source="),
        ({"key_map": {}}, "Pass rename="),
        ({"decode_video": False}, r"Pass cameras=\(\)"),
        ({"rehydrate": True}, "Pass history_size="),
        ({"video_backend": "pyav"}, "Pass decoder="),
        ({"tolerance": 1}, r"Did you mean 'tolerance_s'\?"),
        ({"slice_len": 3, "num_slices": 3}, "one of sampler, slice_len and num_sl"),
        ({"slice_len": 5}, "divides batch_size=12, got 5"),
        ({"num_slices": 1}, "got 12 frames; the longest episode has 6"),
        ({"repo_id": "user/push"}, "one of source and repo_id"),
        ({"batch_size": None}, "expected a batch_size"),
        ({"delta_timestamps": {"action": [0.0]}, "chunk_size": 3}, "alone"),
    ],
)
def test_what_means_something_else_names_its_replacement(dataset, options, message):
    with pytest.raises(SettingsError, match=message):
        LeRobotExperienceReplay(dataset, **{"batch_size": 12} | options)


def test_a_second_replay_does_not_change_what_the_first_draws(dataset):
    def draw(replay):
        return [replay.sample()["index"].tolist() for _ in range(4)]

    alone = draw(LeRobotExperienceReplay(dataset, 8, seed=0))
    first = LeRobotExperienceReplay(dataset, 8, seed=0)
    second = LeRobotExperienceReplay(dataset, 8, seed=7)
    assert draw(first) == alone
    assert draw(second) != alone
