"""LeRobot opens what we write, and finds in it what was written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_steps import FPS, METADATA, TABLE, TASKS, files_below, make_frames

from torchrl_vla.data import VideoEncoding, decode_video, write_lerobot

pytestmark = [
    pytest.mark.lerobot,
    # LeRobot 0.4.4, when it decodes a video and when it writes numbers.
    pytest.mark.filterwarnings("ignore:The video decoding and encoding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting input from bool:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

LENGTHS = (5, 3, 7)
KINDS = {
    "png": {"images": "png"},
    "video": {"images": "video"},
    "lossless": {"images": VideoEncoding.lossless()},
}
CAMERA = "observation.images.front"


def open_lerobot(folder: Path, **options):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    options.setdefault("video_backend", "pyav")
    return LeRobotDataset("local/written", root=folder, **options)


def make_all_kinds_of_entries():
    """Frames with every kind of column: scalars, flags, integers, matrices, cubes."""
    frames = make_frames(LENGTHS)
    count = len(frames)
    frames["observation", "grid"] = torch.arange(6.0 * count).view(count, 2, 3)
    frames["observation", "voxels"] = torch.arange(8 * count).view(count, 2, 2, 2)
    frames["gripper"] = torch.linspace(0, 1, count)[:, None]
    frames["next", "success"] = frames["next", "done"].clone()
    frames["episode_seed"] = 7 + frames["episode_index"]
    return frames


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / request.param
    frames = make_all_kinds_of_entries()
    write_lerobot(
        frames,
        folder,
        metadata=METADATA,
        instructions=TABLE,
        extra_keys=["gripper", "episode_seed"],
        progress=False,
        **KINDS[request.param],
    )
    return request.param, folder, frames


def test_every_entry_of_every_frame_is_what_was_written(written):
    kind, folder, frames = written
    dataset = open_lerobot(folder)
    assert len(dataset) == len(frames)
    names = {
        "observation.state": ("observation", "state"),
        "observation.grid": ("observation", "grid"),
        "observation.voxels": ("observation", "voxels"),
        "action": "action",
        "next.reward": ("next", "reward"),
        "next.done": ("next", "done"),
        "next.success": ("next", "success"),
        "gripper": "gripper",
        "episode_seed": "episode_seed",
        "episode_index": "episode_index",
        "frame_index": "frame_index",
    }
    for row, frame in enumerate(frames):
        item = dataset[row]
        for name, key in names.items():
            assert torch.equal(item[name].squeeze(), frame[key].squeeze()), (row, name)
        assert item["index"] == row
        assert item["timestamp"] == torch.tensor(frame["frame_index"].item() / FPS)
        assert item["task"] == TABLE.decode(frame["language_instruction"])
        for camera in METADATA.cameras:
            got = item[f"observation.images.{camera}"]
            expected = frame["observation", "image", camera].float() / 255
            if kind == "video":
                others = frames["observation", "image", camera].float() / 255
                error = (got - others).abs().mean((1, 2, 3))
                assert error.argmin() == row, "another frame's image"
                # Quality crf 30 of saturated colours, at half their resolution.
                assert error[row] < 0.1
            else:
                assert torch.equal(got, expected), (row, camera)


def test_images_are_those_that_our_own_decoder_finds_in_the_video(written):
    kind, folder, frames = written
    if kind == "png":
        return
    path = folder / "videos" / CAMERA / "chunk-000" / "file-000.mp4"
    ours = decode_video(path, [k / FPS for k in range(len(frames))], decoder="pyav")
    dataset = open_lerobot(folder)
    for row in range(len(frames)):
        assert torch.equal(dataset[row][CAMERA], ours[row].float() / 255), row


def test_windows_in_time_are_those_of_the_episode(written):
    kind, folder, frames = written
    offsets = [-1, 0, 2]
    times = [offset / FPS for offset in offsets]
    dataset = open_lerobot(folder, delta_timestamps={"action": times, CAMERA: times})
    starts = np.cumsum([0, *LENGTHS])
    for row in range(len(frames)):
        item = dataset[row]
        episode = int(frames["episode_index"][row])
        low, high = starts[episode], starts[episode + 1] - 1
        there = [row + offset for offset in offsets]
        is_pad = [not low <= place <= high for place in there]
        places = [min(max(place, low), high) for place in there]
        assert torch.equal(item["action"], frames["action"][places])
        assert item["action_is_pad"].tolist() == is_pad
        if kind != "video":
            images = frames["observation", "image", "front"][places].float() / 255
            assert torch.equal(item[CAMERA], images)


def test_some_episodes_can_be_opened_alone(written):
    _, folder, frames = written
    dataset = open_lerobot(folder, episodes=[2])
    assert len(dataset) == LENGTHS[2]
    assert torch.equal(dataset[1]["action"], frames["action"][9])


def test_the_metadata_are_those_of_the_recording(written):
    _, folder, frames = written
    meta = open_lerobot(folder).meta
    assert (meta.fps, meta.robot_type) == (FPS, "arm")
    assert (meta.total_episodes, meta.total_frames, meta.total_tasks) == (3, 15, 2)
    assert list(meta.tasks.index) == list(TASKS)
    assert sorted(meta.camera_keys) == [
        "observation.images.front",
        "observation.images.wrist",
    ]
    assert meta.names["action"] == ["dx", "dy"]
    assert tuple(meta.shapes["observation.grid"]) == (2, 3)
    state = frames["observation", "state"].double().numpy()
    np.testing.assert_allclose(meta.stats["observation.state"]["mean"], state.mean(0))
    for stats in meta.stats.values():
        assert stats["count"].tolist() == [15]


def test_a_batch_is_normalized_by_lerobots_processor_with_our_statistics(written):
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import NormalizerProcessorStep
    from lerobot.processor.converters import batch_to_transition

    kind, folder, _ = written
    dataset = open_lerobot(folder)
    step = NormalizerProcessorStep(
        features={
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 32, 48)),
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
        },
        norm_map={
            FeatureType.STATE: NormalizationMode.QUANTILES,
            FeatureType.VISUAL: NormalizationMode.MEAN_STD,
            FeatureType.ACTION: NormalizationMode.MEAN_STD,
        },
        stats=dataset.meta.stats,
    )
    batch = torch.utils.data.default_collate([dataset[i] for i in range(15)])
    out = step(batch_to_transition(batch))
    action = out["action"]
    torch.testing.assert_close(action.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(action.std(0, correction=0), torch.ones(2))
    state = out["observation"]["observation.state"].double().numpy()
    # float32, and linear interpolation between the two frames next to the quantile
    np.testing.assert_allclose(np.quantile(state, 0.01, axis=0), -1, atol=1e-5)
    np.testing.assert_allclose(np.quantile(state, 0.99, axis=0), 1, atol=1e-5)
    images = out["observation"][CAMERA]
    assert images.shape == (15, 3, 32, 48)
    if kind != "video":
        channels = images.double().mean((0, 2, 3))
        torch.testing.assert_close(channels, torch.zeros(3).double(), rtol=0, atol=1e-5)


def test_the_files_are_those_that_lerobot_itself_writes(tmp_path):
    """Same names, columns, types and marks; values of statistics differ."""
    frames = make_frames(LENGTHS)
    write_lerobot(
        frames, tmp_path / "ours", metadata=METADATA, instructions=TABLE, progress=False
    )
    info = json.loads((tmp_path / "ours" / "meta" / "info.json").read_text())
    theirs = tmp_path / "theirs"
    _write_with_lerobot(theirs, info["features"], frames)
    ours_alone = set(files_below(tmp_path / "ours")) - set(files_below(theirs))
    assert ours_alone == {"meta/torchrl_vla.json"}
    assert set(files_below(theirs)) < set(files_below(tmp_path / "ours"))
    for name in files_below(theirs):
        if name.endswith(".parquet"):
            ours, expected = (
                pq.read_table(r / name) for r in (tmp_path / "ours", theirs)
            )
            if expected.column_names[-1] == "__index_level_0__":  # 0.4.4's tasks
                expected = expected.rename_columns(["task_index", "task"])
            _assert_same_schema(ours.schema, expected.schema)
            for column in set(ours.column_names) & {"action", "index", "task_index"}:
                assert (
                    ours.column(column).to_pylist()
                    == expected.column(column).to_pylist()
                )
    their_info = json.loads((theirs / "meta" / "info.json").read_text())
    video = info["features"][CAMERA].pop("info")
    their_video = their_info["features"][CAMERA].pop("info")
    shared = video.keys() & their_video.keys()  # 0.4.4 says less of the encoder
    assert len(shared) >= 6
    assert {k: video[k] for k in shared} == {k: their_video[k] for k in shared}
    for feature in (*info["features"].values(), *their_info["features"].values()):
        feature.pop("info", None)
    assert info == their_info
    path = Path("videos", CAMERA, "chunk-000", "file-000.mp4")
    times = [k / FPS for k in range(len(frames))]
    images, expected = (
        decode_video(root / path, times, decoder="pyav")
        for root in (tmp_path / "ours", theirs)
    )
    assert torch.equal(images, expected)


def _write_with_lerobot(folder: Path, features: dict, frames) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    index = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    features = {
        name: {k: v for k, v in value.items() if k != "info"}
        | {"shape": tuple(value["shape"])}
        for name, value in features.items()
        if name not in index
    }
    dataset = LeRobotDataset.create(
        "local/theirs", FPS, features, root=folder, robot_type="arm", use_videos=True
    )
    for frame in frames:
        item = {
            "observation.state": frame["observation", "state"].numpy(),
            "action": frame["action"].numpy(),
            "next.reward": frame["next", "reward"].numpy(),
            "next.done": frame["next", "done"].numpy(),
            "task": TABLE.decode(frame["language_instruction"]),
        }
        for camera in METADATA.cameras:
            image = frame["observation", "image", camera].permute(1, 2, 0).numpy()
            item[f"observation.images.{camera}"] = image
        dataset.add_frame(item)
        if frame["next", "done"]:
            dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def _assert_same_schema(ours, theirs) -> None:
    """Types of the statistics of flags differ between LeRobot's versions."""
    assert sorted(ours.names) == sorted(theirs.names)
    for name in ours.names:
        if "stats/" not in name and name != "task":
            assert ours.field(name).type == theirs.field(name).type, name
    marks = [schema.metadata or {} for schema in (ours, theirs)]
    if b"huggingface" in marks[1]:
        described = [json.loads(mark[b"huggingface"])["info"] for mark in marks]
        assert described[0] == described[1]


def test_lerobot_refuses_a_recording_that_was_not_closed(tmp_path):
    from torchrl_vla.data import LeRobotWriter

    metadata = replace(METADATA, cameras=())
    writer = LeRobotWriter(tmp_path / "a", metadata=metadata, instructions=TABLE)
    writer.add_episode(make_frames((3,), cameras=()))
    writer.release()
    with pytest.raises(Exception, match=r"(?i)offline|connect|not found|No such|hub"):
        open_lerobot(tmp_path / "a")
    LeRobotWriter.resume(tmp_path / "a").close()
    assert len(open_lerobot(tmp_path / "a")) == 3
