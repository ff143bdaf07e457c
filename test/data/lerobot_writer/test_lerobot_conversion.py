from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lerobot_steps import METADATA, TABLE, files_below, make_episode, make_frames
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

from torchrl_vla.data import (
    DemonstrationDataset,
    LeRobotDemonstrations,
    LeRobotExperienceReplay,
    VideoEncoding,
    write_lerobot,
)
from torchrl_vla.schema import (
    FeatureStatistics,
    MetadataError,
    MissingKeyError,
    SchemaError,
)
from torchrl_vla.transforms import ActionScaling

LENGTHS = (5, 3, 7)
STATE_ONLY = replace(METADATA, cameras=())
KEYS = ("action", ("observation", "state"), "language_instruction", "episode_index")


def write(data, folder, metadata=METADATA, **options):
    options = {"instructions": TABLE, "images": "png", "progress": False, **options}
    return write_lerobot(data, folder, metadata=metadata, **options)


def read(folder, tmp_path):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    return dataset.replay_buffer(1)[torch.arange(len(dataset))]


def assert_equal(frames, expected, keys=KEYS):
    for key in keys:
        assert torch.equal(frames[key], expected[key]), key


def test_frames_in_any_order_are_written_in_theirs(tmp_path):
    frames = make_frames(LENGTHS, cameras=())
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    write(frames[order], tmp_path / "a", STATE_ONLY)
    assert_equal(read(tmp_path / "a", tmp_path), frames)


def test_episodes_are_numbered_from_zero_in_the_order_of_their_numbers(tmp_path):
    frames = make_frames(LENGTHS, cameras=())
    shifted = frames.clone()
    shifted["episode_index"] = 40 - 10 * frames["episode_index"]
    write(shifted, tmp_path / "a", STATE_ONLY)
    written = read(tmp_path / "a", tmp_path)
    backwards = [frames[frames["episode_index"] == number] for number in (2, 1, 0)]
    assert_equal(written, torch.cat(backwards), keys=KEYS[:3])
    assert written["episode_index"].tolist() == [0] * 7 + [1] * 3 + [2] * 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [1, 2],
            "frames 0 to 1 of episode 0 once each, got frame_index 1 in place",
        ),
        ([0, 2], "got frame_index 2 in place of 1"),
        ([0, 1, 1], "got frame_index 1 in place of 2"),
    ],
)
def test_an_episode_with_missing_or_repeated_frames_is_refused(tmp_path, rows, message):
    with pytest.raises(SchemaError, match=message):
        write(make_frames((3,))[torch.tensor(rows)], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_demonstrations_bring_their_metadata_instructions_and_other_entries(tmp_path):
    frames = make_frames(LENGTHS)
    frames["episode_seed"] = 100 + frames["episode_index"]
    dataset = DemonstrationDataset(frames, METADATA, TABLE)
    folder = write_lerobot(dataset, tmp_path / "a", images="png", progress=False)
    written = read(folder, tmp_path)
    assert_equal(written, frames, [*KEYS, ("observation", "image", "wrist")])
    assert written["episode_seed"].flatten().tolist() == frames["episode_seed"].tolist()


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
def test_a_replay_buffer_is_written_as_it_is_stored(tmp_path, storage):
    frames = make_frames(LENGTHS, cameras=())
    statistics = FeatureStatistics.from_samples(frames["action"])
    metadata = replace(STATE_ONLY, action_statistics=statistics)
    buffer = TensorDictReplayBuffer(storage=storage(50), batch_size=4)
    buffer.extend(frames)
    buffer.append_transform(ActionScaling.from_metadata(metadata))
    write(buffer, tmp_path / "a", metadata)
    assert_equal(read(tmp_path / "a", tmp_path), frames)


def test_a_rollout_is_cut_where_episodes_end(tmp_path):
    first, second, third = (make_episode(n, number=n, cameras=()) for n in (2, 3, 5))
    rollout = torch.stack([torch.cat([first, second]), third])
    write(rollout, tmp_path / "a", STATE_ONLY)
    written = read(tmp_path / "a", tmp_path)
    assert_equal(written, torch.cat([first, second, third]), keys=KEYS[:3])
    assert written["episode_index"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_a_rollout_is_cut_before_an_episodes_first_step(tmp_path):
    steps = make_episode(5, cameras=()).exclude("next")
    steps["is_init"] = torch.tensor([1, 0, 0, 1, 0], dtype=torch.bool)[:, None]
    write(steps, tmp_path / "a", STATE_ONLY)
    assert read(tmp_path / "a", tmp_path)["frame_index"].tolist() == [0, 1, 2, 0, 1]


def test_steps_that_only_fill_a_batch_up_are_left_out(tmp_path):
    short = make_episode(2, cameras=())
    long = make_episode(4, number=1, cameras=())
    filled = torch.cat([short, torch.zeros_like(short)])
    rollout = torch.stack([filled, long])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    rollout["collector", "mask"] = mask
    write(rollout, tmp_path / "a", STATE_ONLY)
    written = read(tmp_path / "a", tmp_path)
    assert_equal(written, torch.cat([short, long]), KEYS[:3])
    assert written["episode_index"].tolist() == [0, 0, 1, 1, 1, 1]


def test_data_without_the_start_of_episodes_is_refused(tmp_path):
    steps = make_episode(3).exclude("next")
    with pytest.raises(
        MissingKeyError, match=r"'episode_index' and 'frame_index', or a"
    ):
        write(steps, tmp_path / "a")


def test_data_of_an_unsupported_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"expected a dataset, a replay .* got list"):
        write([make_episode(3)], tmp_path / "a")
    with pytest.raises(
        SchemaError, match=r"expected steps \[F\] .*got batch size \[\]"
    ):
        write(make_episode(3)[0], tmp_path / "a")
    with pytest.raises(MetadataError, match=r"expected metadata=\.\.\. for data of ty"):
        write_lerobot(TensorDict({}, [2]), tmp_path / "a")


def test_what_fails_halfway_leaves_nothing(tmp_path):
    frames = make_frames(LENGTHS, cameras=())
    frames["action"][-1] = torch.nan
    with pytest.raises(SchemaError, match="expected finite numbers at 'action'"):
        write(frames, tmp_path / "a", STATE_ONLY)
    assert files_below(tmp_path / "a") == []
    write(make_frames(LENGTHS, cameras=()), tmp_path / "a", STATE_ONLY)


def test_overwrite_replaces_a_dataset_once_the_new_one_is_finished(tmp_path):
    old, new = (make_frames(LENGTHS, cameras=(), seed=seed) for seed in (0, 1))
    folder = write(old, tmp_path / "a", STATE_ONLY)
    (folder / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="write_lerobot: expected no dataset at"):
        write(new, folder, STATE_ONLY)
    bad = new.clone()
    bad["action"][-1] = torch.nan
    with pytest.raises(SchemaError, match="expected finite numbers at 'action'"):
        write(bad, folder, STATE_ONLY, overwrite=True)
    assert_equal(read(folder, tmp_path), old)
    write(new, folder, STATE_ONLY, overwrite=True)
    assert_equal(read(folder, tmp_path), new)
    assert (folder / "README.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["a"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"dataset to replace at .*notes.txt"):
        write(make_frames(LENGTHS), tmp_path, overwrite=True)


def test_a_lerobot_dataset_can_be_written_over_itself(tmp_path):
    frames = make_frames(LENGTHS)
    folder = write(frames, tmp_path / "a", images=VideoEncoding.lossless())
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    write_lerobot(dataset, folder, images="png", overwrite=True, progress=False)
    keys = [*KEYS, ("observation", "image", "front"), ("observation", "image", "wrist")]
    assert_equal(read(folder, tmp_path), frames, keys)
    assert not (folder / "videos").exists()


def test_a_replay_buffer_of_a_lerobot_dataset_is_written_with_its_images(tmp_path):
    frames = make_frames(LENGTHS)
    folder = write(frames, tmp_path / "a")
    replay = LeRobotExperienceReplay(
        folder, 4, chunk_size=3, cache_folder=tmp_path / "cache"
    )
    copy = write_lerobot(replay, tmp_path / "b", images="png", progress=False)
    for name in files_below(folder):
        assert (folder / name).read_bytes() == (copy / name).read_bytes(), name
