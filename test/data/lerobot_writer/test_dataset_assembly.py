"""What is in the files of a finished dataset."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_steps import FPS, METADATA, TABLE, TASKS, make_episode

from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter, VideoEncoding

LENGTHS = (2, 5, 3)
NAMES = [
    "next.done",
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
    "task_index",
]


def write(folder, lengths=LENGTHS, **options) -> torch.Tensor:
    steps = [make_episode(n, number=number) for number, n in enumerate(lengths)]
    with LeRobotWriter(
        folder, metadata=METADATA, instructions=TABLE, **options
    ) as writer:
        for episode in steps:
            writer.add_episode(episode)
    return torch.cat(steps)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "dataset"
    return folder, write(folder)


def rows_of(folder) -> list[dict]:
    files = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_info_equals_that_of_lerobot(dataset):
    info = json.loads((dataset[0] / "meta" / "info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": 3,
        "total_frames": 10,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/"
        "file-{file_index:03d}.mp4",
    }
    assert features["action"] == {
        "dtype": "float32",
        "shape": [2],
        "names": ["dx", "dy"],
    }
    assert features["index"] == {"dtype": "int64", "shape": [1], "names": None}


def test_episodes_say_where_they_are(dataset):
    rows = [
        {name: v for name, v in row.items() if not name.startswith("stats/")}
        for row in rows_of(dataset[0])
    ]
    video = "videos/observation.images.front"
    assert [row["length"] for row in rows] == list(LENGTHS)
    assert [row["tasks"] for row in rows] == [[TASKS[0]], [TASKS[1]], [TASKS[0]]]
    assert [row["dataset_from_index"] for row in rows] == [0, 2, 7]
    assert [row["dataset_to_index"] for row in rows] == [2, 7, 10]
    assert [row[f"{video}/from_timestamp"] for row in rows] == [0, 2 / FPS, 7 / FPS]
    assert [row[f"{video}/to_timestamp"] for row in rows] == [0.2, 0.7, 1.0]
    assert {row[f"{video}/file_index"] for row in rows} == {0}
    assert {row["data/file_index"] for row in rows} == {0}
    assert {row["meta/episodes/chunk_index"] for row in rows} == {0}


def test_the_index_columns_number_the_frames(dataset):
    table = pq.read_table(dataset[0] / "data" / "chunk-000" / "file-000.parquet")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    assert columns["index"] == list(range(10))
    assert columns["frame_index"] == [0, 1, 0, 1, 2, 3, 4, 0, 1, 2]
    assert columns["episode_index"] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert columns["task_index"] == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    expected = (np.array(columns["frame_index"]) / FPS).astype(np.float32)
    assert columns["timestamp"] == expected.tolist()


def test_statistics_are_those_of_all_frames(dataset):
    folder, written = dataset
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    state = written["observation", "state"].double().numpy()
    got = stats["observation.state"]
    assert got["count"] == [10]
    np.testing.assert_allclose(got["mean"], state.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got["std"], state.std(0), rtol=1e-12)
    for name, fraction in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        expected = np.quantile(state, fraction, axis=0)
        np.testing.assert_allclose(got[name], expected, rtol=1e-12)
    assert stats["episode_index"]["mean"] == [1.1]  # (5 * 1 + 3 * 2) / 10
    assert stats["next.done"]["mean"] == [0.3]
    assert set(NAMES) < set(stats)


def test_statistics_of_a_camera_are_those_of_all_its_pixels(dataset):
    folder, written = dataset
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    got = {k: np.array(v) for k, v in stats["observation.images.front"].items()}
    pixels = written["observation", "image", "front"].double().numpy() / 255
    axes = (0, 2, 3)
    assert got["count"].tolist() == [10]
    for name, expected in {
        "mean": pixels.mean(axes),
        "std": pixels.std(axes),
        "min": pixels.min(axes),
        "q10": np.quantile(pixels, 0.1, axis=axes),
    }.items():
        assert got[name].shape == (3, 1, 1)
        np.testing.assert_allclose(got[name].ravel(), expected, rtol=0, atol=1e-12)


def test_statistics_of_an_episode_are_of_its_frames_alone(dataset):
    folder, written = dataset
    row = rows_of(folder)[1]
    action = written["action"][2:7].double().numpy()
    np.testing.assert_allclose(row["stats/action/q50"], np.median(action, 0))
    np.testing.assert_allclose(row["stats/action/max"], action.max(0))
    assert row["stats/action/count"] == [5]
    pixels = written["observation", "image", "wrist"][2:7].double().numpy() / 255
    mean = np.array(row["stats/observation.images.wrist/mean"]).ravel()
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=0, atol=1e-12)


def test_full_files_are_followed_by_others_and_every_frame_is_found(tmp_path):
    written = write(
        tmp_path / "a",
        (4, 4, 4, 4),
        images=VideoEncoding.lossless(),
        video_file_size_mb=0.02,
        data_file_size_mb=0.005,
    )
    for folder in ("data", "videos/observation.images.front"):
        files = list((tmp_path / "a" / folder).rglob("file-*"))
        assert 1 < len(files) <= 4, folder
    dataset = LeRobotDemonstrations.from_folder(
        tmp_path / "a", cache_folder=tmp_path / "cache"
    )
    frames = dataset.replay_buffer(1)[torch.arange(16)]
    for key in ("action", ("observation", "image", "front")):
        assert torch.equal(frames[key], written[key])
    stats = json.loads((tmp_path / "a" / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(
        stats["action"]["mean"], written["action"].double().mean(0), rtol=1e-12
    )


def test_episodes_beyond_one_batch_of_rows_are_all_written(tmp_path):
    count, metadata = 203, replace(METADATA, cameras=())
    steps = make_episode(1, cameras=())
    with LeRobotWriter(tmp_path / "a", metadata=metadata, instructions=TABLE) as writer:
        for number in range(count):
            steps["action"].fill_(number)
            writer.add_episode(steps)
    dataset = LeRobotDemonstrations.from_folder(
        tmp_path / "a", cache_folder=tmp_path / "cache"
    )
    assert dataset.frames["action"][:, 0].tolist() == list(range(count))
    assert [row["episode_index"] for row in rows_of(tmp_path / "a")] == list(
        range(count)
    )
