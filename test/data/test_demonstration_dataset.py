from __future__ import annotations

import os

import pytest
import torch
from tensordict import MemoryMappedTensor, TensorDict
from torchrl.data import SliceSampler
from torchrl.envs import Transform

from torchrl_vla.data import DemonstrationDataset, demonstration_dataset
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ActionChunkTransform


def make_dataset(lengths=(3, 2, 4)):
    table = InstructionTable(["push", "lift"])
    episode = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    frame = torch.cat([torch.arange(length) for length in lengths])
    frames = TensorDict(
        {
            "observation": {"state": torch.rand(len(frame), 2)},
            "language_instruction": table.ids[episode % 2],
            "action": (100.0 * episode + frame).unsqueeze(-1),
            "episode_index": episode,
            "frame_index": frame,
        },
        [len(frame)],
    )
    statistics = FeatureStatistics.from_samples(frames["action"])
    metadata = RobotDatasetMetadata("made", action_dim=1, action_statistics=statistics)
    return DemonstrationDataset(frames, metadata, table)


def test_a_folder_restores_frames_metadata_and_instructions(tmp_path):
    dataset = make_dataset()
    loaded = DemonstrationDataset.from_folder(dataset.to_folder(tmp_path / "made"))
    assert (loaded.frames == dataset.frames).all()
    assert isinstance(loaded.frames["action"], MemoryMappedTensor)
    assert loaded.metadata == dataset.metadata
    assert loaded.instructions.texts == ("push", "lift")
    assert (len(loaded), loaded.num_episodes) == (9, 3)


def test_a_folder_that_was_not_finished_is_refused(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    (folder / "metadata.json").unlink()
    with pytest.raises(
        SchemaError, match=r"expected 'metadata\.json' in .*not finished"
    ):
        DemonstrationDataset.from_folder(folder)


@pytest.mark.parametrize("name", ["action", "observation/state", "episode_index"])
@pytest.mark.parametrize("part", [0.5, 2.0])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_file_that_was_cut_off_or_grew_is_refused(tmp_path, name, part, has_manifest):
    folder = make_dataset().to_folder(tmp_path / "made")
    if not has_manifest:  # as older versions wrote it
        (folder / "files.json").unlink()
    path = folder / "frames" / f"{name}.memmap"
    size = int(path.stat().st_size * part)
    os.truncate(path, size)
    with pytest.raises(
        SchemaError, match=rf"bytes.*{name}\.memmap', got {size}: the fi"
    ):
        DemonstrationDataset.from_folder(folder)
    assert path.stat().st_size == size


def test_another_instruction_than_the_recorded_one_is_refused(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    path = folder / "instructions.json"
    path.write_text(path.read_text().replace("lift", "loft"))
    with pytest.raises(SchemaError, match=r"the checksum .*instructions\.json'"):
        DemonstrationDataset.from_folder(folder)


def test_a_changed_number_is_found_where_the_checksums_are_verified(tmp_path):
    dataset = make_dataset((3, 200_000))
    folder = dataset.to_folder(tmp_path / "made")
    path = folder / "frames" / "episode_index.memmap"  # 1.6 MB
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\1")
    assert len(DemonstrationDataset.from_folder(folder)) == 200_003
    with pytest.raises(SchemaError, match=r"the checksum .*episode_index\.memmap'"):
        DemonstrationDataset.from_folder(folder, verify=True)


def test_training_on_a_dataset_does_not_change_its_files(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    loaded = DemonstrationDataset.from_folder(folder)
    loaded.frames["action"].zero_()
    again = DemonstrationDataset.from_folder(folder, verify=True)
    assert (again.frames == make_dataset().frames).exclude("observation").all()


def test_an_interrupted_overwrite_leaves_the_old_dataset(tmp_path, monkeypatch):
    folder = make_dataset().to_folder(tmp_path / "made")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(demonstration_dataset, "write_manifest", fail)
    with pytest.raises(OSError, match="the disk is full"):
        make_dataset((2,)).to_folder(folder, overwrite=True)
    assert len(DemonstrationDataset.from_folder(folder, verify=True)) == 9


def test_frames_without_numbers_of_episodes_are_refused(tmp_path):
    dataset = make_dataset()
    dataset.frames = dataset.frames.exclude("episode_index")
    folder = dataset.to_folder(tmp_path / "made")
    with pytest.raises(
        SchemaError, match=r"expected frames \[F\] with .*episode_index"
    ):
        DemonstrationDataset.from_folder(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder at .*nowhere"):
        DemonstrationDataset.from_folder(tmp_path / "nowhere")


def test_a_folder_with_contents_is_kept_without_overwrite(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    with pytest.raises(FileExistsError, match=r"or pass overwrite=True"):
        make_dataset((2,)).to_folder(folder)
    assert len(DemonstrationDataset.from_folder(folder)) == 9
    make_dataset((2,)).to_folder(folder, overwrite=True)
    assert len(DemonstrationDataset.from_folder(folder)) == 2


def test_a_part_can_replace_the_folder_that_it_was_read_from(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    part = DemonstrationDataset.from_folder(folder).select_episodes(torch.tensor([2]))
    expected = part.frames.clone()
    part.to_folder(folder, overwrite=True)
    assert (DemonstrationDataset.from_folder(folder).frames == expected).all()


def test_columns_of_the_old_dataset_do_not_survive_overwriting(tmp_path):
    folder = make_dataset().to_folder(tmp_path / "made")
    narrow = make_dataset((2,))
    narrow.frames = narrow.frames.exclude("observation")
    narrow.to_folder(folder, overwrite=True)
    keys = set(DemonstrationDataset.from_folder(folder).frames.keys(True))
    assert keys == set(narrow.frames.keys(True))


def test_batches_repeat_with_their_seed():
    batches = [
        make_dataset().replay_buffer(6, seed=seed).sample()["action"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_frames_are_sampled_uniformly():
    torch.manual_seed(0)
    buffer = make_dataset().replay_buffer(9000, seed=0)
    _, counts = buffer.sample()["action"].unique(return_counts=True)
    assert len(counts) == 9
    assert counts.min() > 850  # 1000 expected, standard deviation 30


def test_a_sampler_and_a_transform_can_be_passed():
    dataset = make_dataset()
    buffer = dataset.replay_buffer(
        4,
        sampler=SliceSampler(num_slices=2, traj_key="episode_index"),
        transform=ActionChunkTransform(2, storage=dataset.storage),
    )
    sample = buffer.sample()
    chunk, is_pad = sample["action_chunk"], sample["action_is_pad"]
    assert torch.equal(chunk[:, 0], sample["action"])
    ends = torch.tensor([3, 2, 4])[sample["episode_index"]] - 1
    assert torch.equal(is_pad[:, 1], sample["frame_index"] == ends)


def test_a_split_is_by_episode_and_loses_nothing():
    dataset = make_dataset((1, 2, 3, 4, 5))
    train, rest = dataset.split(0.6, seed=1)
    assert (train.num_episodes, rest.num_episodes) == (3, 2)
    episodes = [set(part.frames["episode_index"].tolist()) for part in (train, rest)]
    assert episodes[0].isdisjoint(episodes[1])
    assert len(train) + len(rest) == 15
    assert train.metadata == dataset.metadata
    again, _ = dataset.split(0.6, seed=1)
    assert (again.frames == train.frames).all()


def test_chunks_of_a_selection_end_where_the_episodes_do():
    part = make_dataset().select_episodes(torch.tensor([0, 2]))
    buffer = part.replay_buffer(
        4, transform=ActionChunkTransform(3, storage=part.storage)
    )
    by_frame = {float(row["action"]): row for row in buffer[:]}
    assert by_frame[2.0]["action_chunk"].flatten().tolist() == [2.0, 2.0, 2.0]
    assert by_frame[201.0]["action_chunk"].flatten().tolist() == [201.0, 202.0, 203.0]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_a_split_with_an_empty_side_is_refused(fraction):
    with pytest.raises(ValueError, match="leaves episodes on both sides"):
        make_dataset().split(fraction)


def test_a_dataset_prints_episodes_and_frames_of_each_instruction():
    assert repr(make_dataset()).splitlines() == [
        "DemonstrationDataset 'made': 3 episodes, 9 frames",
        " episodes    frames  instruction",
        "        2         7  push",
        "        1         2  lift",
    ]


def test_a_buffer_gathers_the_observation_history():
    dataset = make_dataset()
    seen = []

    class Peek(Transform):
        def forward(self, tensordict):
            seen.append(set(tensordict.keys()))
            return tensordict

    batch = dataset.replay_buffer(32, history_size=2, transform=Peek(), seed=0).sample()
    state = dataset.frames["observation", "state"]
    for row, index in enumerate(batch["index"].tolist()):
        first = int(batch["frame_index"][row]) == 0
        expected = torch.stack([state[index if first else index - 1], state[index]])
        assert torch.equal(batch["observation_history", "state"][row], expected)
        assert batch["history_is_pad"][row].tolist() == [first, False]
    assert "observation_history" in seen[0]
    assert "observation_history" not in dataset.replay_buffer(2).sample()
