"""Samples are the recorded frames, with chunks and history as computed by hand."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from lerobot_folders import CAMERAS, decode, history_of, record, write_folder
from torchrl.data import SamplerWithoutReplacement

from torchrl_vla.data import LeRobotDemonstrations, LeRobotExperienceReplay
from torchrl_vla.transforms import ActionScaling

RECORDING = record()
FRAMES = sum(RECORDING.lengths)


@pytest.fixture(scope="module", params=["image", "video"])
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "push"
    return write_folder(path, RECORDING, images=request.param, files=2)


@pytest.fixture
def replay(folder, tmp_path_factory):
    def make(**options) -> LeRobotExperienceReplay:
        cache = tmp_path_factory.getbasetemp() / "cache"
        options = {"batch_size": 64, "seed": 3, "decoder": "pyav"} | options
        return LeRobotExperienceReplay(folder, cache_folder=cache, **options)

    return make


def test_a_sample_holds_the_recorded_frame_with_its_chunk_and_images(replay):
    sample = replay(chunk_size=4).sample()
    assert len(sample["index"].unique()) > FRAMES // 2
    for i, row in enumerate(sample["index"].tolist()):
        chunk, is_pad = decode(RECORDING, row, 4)
        assert torch.equal(sample["action_chunk"][i], chunk)
        assert torch.equal(sample["action_is_pad"][i], is_pad)
        for name in ("action", "timestamp", "episode_index", "frame_index"):
            stored = torch.from_numpy(RECORDING.columns[name])[row]
            assert torch.equal(sample[name][i], stored)
        for camera in CAMERAS:
            image = RECORDING.images[f"observation.images.{camera}"][row]
            expected = torch.from_numpy(image).permute(2, 0, 1)
            assert torch.equal(sample["observation", "image", camera][i], expected)


def test_history_repeats_the_first_frame_of_the_episode_and_masks_it(replay):
    sample = replay(history_size=3).sample()
    assert sample["history_is_pad"].any()
    history = sample["observation_history"]
    for i, row in enumerate(sample["index"].tolist()):
        rows, is_pad = history_of(RECORDING, row, 3)
        assert torch.equal(sample["history_is_pad"][i], is_pad)
        for name in ("state", "environment_state"):
            stored = torch.from_numpy(RECORDING.columns[f"observation.{name}"])
            assert torch.equal(history[name][i], stored[rows])
            assert torch.equal(sample["observation", name][i], stored[row])
        for camera in CAMERAS:
            images = RECORDING.images[f"observation.images.{camera}"]
            expected = torch.from_numpy(images).permute(0, 3, 1, 2)
            assert torch.equal(history["image", camera][i], expected[rows])
            assert torch.equal(sample["observation", "image", camera][i], expected[row])


def test_history_is_absent_by_default(replay):
    assert "observation_history" not in replay().sample()


def test_equal_seeds_sample_equal_frames(replay):
    first, second, other = replay(), replay(), replay(seed=4)
    for _ in range(2):
        a, b, c = first.sample(), second.sample(), other.sample()
        assert (a == b).all()
        assert not torch.equal(a["index"], c["index"])


def test_an_epoch_contains_each_frame_once_in_the_order_of_its_seed(replay):
    buffer = replay(chunk_size=2)
    batches = list(buffer.iter_epoch(4, seed=1))
    rows = torch.cat([batch["index"] for batch in batches])
    assert rows.sort().values.tolist() == list(range(FRAMES))
    assert rows.tolist() != list(range(FRAMES))
    state = torch.cat([batch["observation", "state"] for batch in batches])
    stored = torch.from_numpy(RECORDING.columns["observation.state"])
    assert torch.equal(state, stored[rows])
    again = torch.cat([batch["index"] for batch in buffer.iter_epoch(4, seed=1)])
    assert torch.equal(again, rows)
    assert [len(batch) for batch in buffer.iter_epoch(4, drop_last=True)] == [4, 4, 4]


def test_a_split_leaks_no_episode_and_keeps_the_statistics(replay):
    buffer = replay(chunk_size=3, history_size=2)
    train, validate = buffer.split(2 / 3, seed=0)
    parts = [part.dataset.episodes.tolist() for part in (train, validate)]
    assert sorted([*parts[0], *parts[1]]) == [0, 1, 2]
    assert [len(part) for part in parts] == [2, 1]
    for part, episodes in zip((train, validate), parts):
        assert part.metadata == buffer.metadata
        sample = part.sample()
        assert set(sample["episode_index"].tolist()) == set(episodes)
        for i, row in enumerate(sample["dataset_index"].tolist()):
            chunk, _ = decode(RECORDING, row, 3)
            assert torch.equal(sample["action_chunk"][i], chunk)
            rows, _ = history_of(RECORDING, row, 2)
            stored = torch.from_numpy(RECORDING.columns["observation.state"])
            found = sample["observation_history", "state"][i]
            assert torch.equal(found, stored[rows])


def test_a_split_does_not_share_transforms_or_samplers(replay):
    buffer = replay(
        batch_size=3,
        chunk_size=2,
        sampler=SamplerWithoutReplacement(),
        transform=ActionScaling.from_metadata(replay().metadata, mode="mean_std"),
    )
    train, validate = buffer.split(2 / 3)
    assert train.sampler is not validate.sampler
    assert train.sample()["action_chunk"].shape == (3, 2, 2)
    assert validate.sample()["action_chunk"].shape == (3, 2, 2)


def test_only_the_chosen_episodes_and_cameras_are_sampled(replay):
    sample = replay(episodes=[2], cameras=("wrist",)).sample()
    assert set(sample["episode_index"].tolist()) == {2}
    assert set(sample["observation", "image"].keys()) == {"wrist"}
    blind = replay(cameras=()).sample()
    assert ("observation", "image") not in blind.keys(True)


def test_the_instructions_are_those_of_the_episodes(replay):
    buffer = replay()
    sample = buffer.sample()
    texts = buffer.instructions.decode(sample["language_instruction"])
    for text, episode in zip(texts, sample["episode_index"].tolist()):
        assert text == ("push the block", "open the drawer")[episode % 2]


def test_an_open_dataset_is_a_source(folder, tmp_path):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    buffer = LeRobotExperienceReplay(dataset, 4, episodes=[0])
    assert len(buffer) == RECORDING.lengths[0]
    assert len(LeRobotExperienceReplay(dataset, 4)) == FRAMES


def test_a_pickled_dataset_decodes_the_same_images(folder, tmp_path):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    other = pickle.loads(pickle.dumps(dataset))
    samples = [d.replay_buffer(8, seed=0).sample() for d in (dataset, other)]
    assert (samples[0] == samples[1]).all()


@pytest.mark.parametrize(
    "options", [{"cameras": ()}, {"decoder": "pyav"}, {"statistics": "exact"}]
)
def test_how_to_open_is_refused_beside_an_open_dataset(folder, tmp_path, options):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    with pytest.raises(ValueError, match=rf"expected no \['{next(iter(options))}'\]"):
        LeRobotExperienceReplay(dataset, 4, **options)


@pytest.mark.parametrize("source", ["./absent", "a/b/c", "absent", Path("some/where")])
def test_a_missing_path_is_not_looked_up_on_the_hub(source):
    with pytest.raises(FileNotFoundError, match="expected a folder or a repository"):
        LeRobotExperienceReplay(source, 4)


class FakeHub(types.ModuleType):
    """Stands in for huggingface_hub: knows one dataset, or none."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.asked = folder, None
        self.errors = types.ModuleType("huggingface_hub.errors")
        self.errors.LocalEntryNotFoundError = type("NotCached", (OSError,), {})

    def snapshot_download(self, repo_id, *, repo_type, revision):
        self.asked = (repo_id, repo_type, revision)
        if self.folder is None:
            raise self.errors.LocalEntryNotFoundError("offline")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch):
    def install(folder: Path | None) -> FakeHub:
        fake = FakeHub(folder)
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
        return fake

    return install


def test_a_repository_is_fetched_at_its_revision(folder, tmp_path, hub):
    fake = hub(folder)
    buffer = LeRobotExperienceReplay(
        "user/push", 4, revision="v3.0", cache_folder=tmp_path
    )
    assert fake.asked == ("user/push", "dataset", "v3.0")
    assert buffer.metadata.dataset_id == "user/push"


def test_a_folder_wins_over_a_repository_of_that_name(
    folder, tmp_path, hub, monkeypatch
):
    hub(None)
    monkeypatch.chdir(folder.parent.parent)
    source = f"{folder.parent.name}/{folder.name}"
    buffer = LeRobotExperienceReplay(source, 4, cache_folder=tmp_path)
    assert buffer.metadata.dataset_id == folder.name


def test_a_repository_that_is_nowhere_is_refused(hub):
    hub(None)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' on the Hub or in"):
        LeRobotExperienceReplay("nobody/nothing", 4)


def test_a_revision_of_a_folder_is_refused(folder):
    with pytest.raises(ValueError, match="expected a repository of the Hub beside"):
        LeRobotExperienceReplay(folder, 4, revision="v3.0")
