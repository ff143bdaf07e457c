from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from lerobot_steps import METADATA, TABLE, TASKS, files_below, make_episode

from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter, VideoEncoding
from torchrl_vla.schema import ExecutionError, MetadataError, SchemaError

STATE_ONLY = replace(METADATA, cameras=())


def open_writer(folder, metadata=METADATA, **options) -> LeRobotWriter:
    options.setdefault("instructions", TABLE)
    return LeRobotWriter(folder, metadata=metadata, **options)


def read(folder, tmp_path):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    return dataset, dataset.replay_buffer(1)[torch.arange(len(dataset))]


LOSSLESS = [{"images": "png"}, {"images": VideoEncoding.lossless()}]


@pytest.mark.parametrize("options", LOSSLESS, ids=["png", "video"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, options):
    episodes = [make_episode(4), make_episode(3, number=1)]
    with open_writer(tmp_path / "a", **options) as writer:
        for steps in episodes:
            for step in steps.unbind(0):
                writer.add(step)
            writer.end_episode()
    dataset, frames = read(tmp_path / "a", tmp_path)
    written = torch.cat(episodes)
    for key in written.keys(True, True):
        assert torch.equal(frames[key], written[key]), key
    assert frames["episode_index"].tolist() == [0] * 4 + [1] * 3
    assert frames["frame_index"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert frames["dataset_index"].tolist() == list(range(7))
    assert dataset.instructions.texts == TASKS
    metadata = dataset.metadata
    assert metadata.action_names == METADATA.action_names
    assert metadata.state_names == METADATA.state_names
    assert metadata.embodiment_id == "arm"
    assert metadata.cameras == METADATA.cameras
    assert metadata.control_frequency_hz == METADATA.control_frequency_hz


def test_a_finished_folder_holds_lerobots_files_and_our_declaration(tmp_path):
    with open_writer(tmp_path / "a") as writer:
        writer.add_episode(make_episode(2))
    assert files_below(tmp_path / "a") == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/torchrl_vla.json",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]


def test_steps_one_by_one_and_a_whole_episode_give_the_same_dataset(tmp_path):
    steps = make_episode(4)
    with open_writer(tmp_path / "steps", images="png") as writer:
        for step in steps.split(1):
            writer.add(step)
        writer.end_episode()
    with open_writer(tmp_path / "whole", images="png") as writer:
        writer.add_episode(steps)
    for name in files_below(tmp_path / "whole"):
        one, other = (tmp_path / kind / name for kind in ("steps", "whole"))
        assert one.read_bytes() == other.read_bytes(), name


def test_the_caller_may_use_its_buffers_again(tmp_path):
    step = make_episode(1, cameras=())
    with open_writer(tmp_path / "a", STATE_ONLY) as writer:
        for value in (1.0, 2.0):
            step["action"].fill_(value)
            writer.add(step)
        writer.end_episode()
    assert read(tmp_path / "a", tmp_path)[1]["action"][:, 0].tolist() == [1.0, 2.0]


def test_a_discarded_episode_leaves_nothing(tmp_path):
    with open_writer(tmp_path / "a") as writer:
        writer.add(make_episode(1, seed=5)[0])
        writer.discard_episode()
        writer.discard_episode()
        writer.add_episode(make_episode(3))
        writer.add(make_episode(1, seed=6)[0])
        assert writer.num_frames == 1
        writer.discard_episode()
        assert (writer.num_episodes, writer.num_frames) == (1, 0)
    frames = read(tmp_path / "a", tmp_path)[1]
    assert torch.equal(frames["action"], make_episode(3)["action"])


def test_the_instruction_may_change_within_an_episode(tmp_path):
    steps = make_episode(3, cameras=())
    steps["language_instruction"] = TABLE.encode([TASKS[1], TASKS[0], TASKS[1]])
    with open_writer(tmp_path / "a", STATE_ONLY) as writer:
        writer.add_episode(steps)
    frames = read(tmp_path / "a", tmp_path)[1]
    assert frames["task_index"].tolist() == [0, 1, 0]
    assert TABLE.decode(frames["language_instruction"]) == [
        TASKS[1],
        TASKS[0],
        TASKS[1],
    ]


def test_a_refused_step_leaves_the_episode_as_it_was(tmp_path):
    with open_writer(tmp_path / "a", STATE_ONLY) as writer:
        writer.add(make_episode(1, cameras=())[0])
        bad = make_episode(1, cameras=()).set("action", torch.full((1, 2), torch.nan))
        with pytest.raises(SchemaError, match="expected finite numbers at 'action'"):
            writer.add(bad)
        assert writer.num_frames == 1
        writer.end_episode()
    assert len(read(tmp_path / "a", tmp_path)[0]) == 1


def test_a_refused_episode_is_dropped_whole(tmp_path):
    with open_writer(tmp_path / "a", STATE_ONLY) as writer:
        bad = make_episode(4, cameras=())
        bad["action"][3] = torch.inf
        with pytest.raises(SchemaError, match="expected finite numbers at 'action'"):
            writer.add_episode(bad)
        assert (writer.num_episodes, writer.num_frames) == (0, 0)
        writer.add_episode(make_episode(2, cameras=()))


@pytest.mark.parametrize("rate_hz", [None, 12.5])
def test_a_rate_that_is_not_a_whole_number_is_refused(tmp_path, rate_hz):
    metadata = replace(METADATA, control_frequency_hz=rate_hz)
    with pytest.raises(MetadataError, match=rf"a whole number.*got {rate_hz}. Set it"):
        open_writer(tmp_path / "a", metadata)
    assert not (tmp_path / "a").exists()


def test_images_of_an_unknown_kind_are_refused(tmp_path):
    message = r"expected images of 'video', 'png' or a VideoEncoding, got 'jpeg'"
    with pytest.raises(ValueError, match=message):
        open_writer(tmp_path / "a", images="jpeg")
    assert not (tmp_path / "a").exists()


def test_a_batch_of_environments_is_refused(tmp_path):
    writer = open_writer(tmp_path / "a")
    with pytest.raises(SchemaError, match=r"batch size \[\] or \[1\], got \[2\]. Give"):
        writer.add(make_episode(2))
    with pytest.raises(
        SchemaError, match=r"expected steps \[T\] with T >= 1, got .*\[\]"
    ):
        writer.add_episode(make_episode(2)[0])
    writer.release()


def test_an_episode_without_steps_is_refused(tmp_path):
    writer = open_writer(tmp_path / "a")
    with pytest.raises(
        ExecutionError, match="expected an episode with steps, got none"
    ):
        writer.end_episode()
    with pytest.raises(SchemaError, match=r"with T >= 1, got batch size \[0\]"):
        writer.add_episode(make_episode(2)[:0])
    writer.release()


def test_closing_amid_an_episode_is_refused_and_loses_nothing(tmp_path):
    writer = open_writer(tmp_path / "a", STATE_ONLY)
    writer.add(make_episode(1, cameras=())[0])
    message = r"close: expected no steps of an episode that was not ended, got 1"
    with pytest.raises(ExecutionError, match=message):
        writer.close()
    with pytest.raises(
        ExecutionError, match=r"add_episode: expected no steps of an ep"
    ):
        writer.add_episode(make_episode(1, cameras=()))
    writer.end_episode()
    writer.close()
    assert len(read(tmp_path / "a", tmp_path)[0]) == 1


def test_closing_without_an_episode_is_refused(tmp_path):
    writer = open_writer(tmp_path / "a")
    with pytest.raises(ExecutionError, match="expected at least one finished episode"):
        writer.close()
    writer.release()


def test_a_closed_writer_closes_again_and_refuses_steps(tmp_path):
    with open_writer(tmp_path / "a", STATE_ONLY) as writer:
        writer.add_episode(make_episode(1, cameras=()))
        writer.close()
    writer.close()
    with pytest.raises(
        ExecutionError, match="expected an open recording, got one that"
    ):
        writer.add(make_episode(1, cameras=())[0])
    assert "closed, 1 episodes" in repr(writer)


def test_images_that_the_codec_refuses_do_not_stay_in_the_episode(tmp_path):
    writer = open_writer(tmp_path / "a")
    with pytest.raises(SchemaError, match=r"got 16 x 16 .*Pass images='png'"):
        writer.add(make_episode(1, size=(16, 16))[0])
    assert writer.num_frames == 0
    writer.add_episode(make_episode(2))
    writer.close()
    info = json.loads((tmp_path / "a" / "meta" / "info.json").read_text())
    assert info["features"]["observation.images.front"]["shape"] == [32, 48, 3]


def test_an_image_of_an_earlier_step_is_not_written(tmp_path):
    steps = make_episode(3)
    steps["image_is_stale"] = torch.tensor([[False], [True], [False]])
    with open_writer(tmp_path / "a") as writer:
        with pytest.raises(SchemaError, match=r"^LeRobotWriter.*True in 1 of 3 frames"):
            writer.add_episode(steps)
        writer.add_episode(steps.set("image_is_stale", torch.zeros(3, 1).bool()))
        assert writer.num_episodes == 1


def test_a_codec_that_does_not_exist_is_refused_before_anything_is_written(tmp_path):
    message = r"expected an encoder 'h999' at 'images' in this FFmpeg, got .*h264\(\)"
    with pytest.raises(SchemaError, match=message):
        open_writer(tmp_path / "a", images=VideoEncoding("h999"))
    assert not (tmp_path / "a").exists()
