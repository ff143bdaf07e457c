"""What a LeRobot reader refuses, and the option that each refusal names."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_folders import (
    edit_info,
    encode_video,
    record,
    write_folder,
)

from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.schema import SchemaError

FRONT = "observation.images.front"
KEY = ("observation", "image", "front")


def read(folder, **options):
    cache = folder.parent / "cache"
    return LeRobotDemonstrations.from_folder(folder, cache_folder=cache, **options)


def pictures(dataset):
    return dataset.replay_buffer(1)[:][KEY].permute(0, 2, 3, 1).numpy()


def edit_column(folder, name, change):
    """Change a column of the only data file."""
    (path,) = folder.glob("data/*/*.parquet")
    table = pq.read_table(path)
    values = np.array(table[name].to_pylist(), dtype=np.float32)
    change(values)
    column = pa.array(values.reshape(-1))
    if values.ndim > 1:
        column = pa.FixedSizeListArray.from_arrays(column, values.shape[1])
    number = table.column_names.index(name)
    pq.write_table(table.set_column(number, name, column), path)


def edit_features(folder, change):
    info = json.loads((folder / "meta/info.json").read_text())
    change(info["features"])
    edit_info(folder, features=info["features"])


def test_a_vector_of_another_name_becomes_the_state(tmp_path):
    recording = record((3, 2), cameras=())
    columns = dict(recording.columns)
    state = columns.pop("observation.state")
    columns |= {"observation.arm": state[:, :2], "observation.hand": state[:, 2:]}
    folder = write_folder(tmp_path / "d", replace(recording, columns=columns))
    arm_alone = read(folder, rename={"observation.arm": "observation.state"})
    assert np.array_equal(arm_alone.frames["observation", "state"], state[:, :2])
    assert np.array_equal(arm_alone.frames["observation", "hand"], state[:, 2:])
    both = dict.fromkeys(("observation.arm", "observation.hand"), "observation.state")
    for statistics in ("exact", "stored"):
        whole = read(folder, rename=both, statistics=statistics)
        assert np.array_equal(whole.frames["observation", "state"], state)
        assert ("observation", "arm") not in whole.frames.keys(True)
        names = ("observation.arm_0", "observation.arm_1", "observation.hand_0")
        assert whole.metadata.state_names == names
        found = whole.metadata.state_statistics.mean
        torch.testing.assert_close(found, torch.tensor(state.mean(0)).double())
    turned = read(folder, rename=dict(reversed(both.items())))
    assert np.array_equal(turned.frames["observation", "state"], state[:, [2, 0, 1]])


def test_a_renamed_camera_keeps_its_pictures(tmp_path):
    recording = record((3,), cameras=("cam_high",))
    folder = write_folder(tmp_path / "d", recording)
    rename = {"observation.images.cam_high": FRONT}
    dataset = read(folder, rename=rename, cameras=("cam_high",))
    assert dataset.metadata.cameras == ("front",)
    assert np.array_equal(
        pictures(dataset), recording.images["observation.images.cam_high"]
    )


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        ({"arm": "action"}, ValueError, r"got \['arm'\].*--rename OLD NEW"),
        ({"action": "timestamp"}, ValueError, r"got \['timestamp'\], which number"),
        (
            {"observation.environment_state": "observation.state"},
            SchemaError,
            r"'observation.state', whose keys overlap.*rename=.*--rename observation.e",
        ),
        (
            dict.fromkeys((FRONT, "observation.state"), "observation.state"),
            SchemaError,
            r"concatenate to 'observation.state', got .*images.front",
        ),
        (
            {FRONT: "front"},
            SchemaError,
            r"below 'observation.', got .*rename=\{.*front",
        ),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path, rename, error, message):
    folder = write_folder(tmp_path / "d", record((2,), cameras=("front",)))
    with pytest.raises(error, match=message):
        read(folder, rename=rename)


def test_a_camera_of_a_damaged_file_is_left_out(tmp_path):
    recording = record((3, 2), cameras=("front", "wrist"))
    folder = write_folder(tmp_path / "d", recording, images="video")
    (video,) = folder.glob("videos/*wrist/*/*.mp4")
    video.unlink()
    with pytest.raises(FileNotFoundError, match="wrist"):
        read(folder)
    dataset = read(folder, cameras=("front",))
    assert np.array_equal(pictures(dataset), recording.images[FRONT])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_with_frames_of_no_row_is_refused(tmp_path, version):
    recording = record((4, 3), cameras=("front",))
    folder = write_folder(tmp_path / "d", recording, version=version, images="video")
    video = sorted(folder.rglob("*.mp4"))[0]
    images = recording.images[FRONT]
    # A discarded take of two frames, before the first episode's own.
    mine = images[:4] if version == "v2.1" else images
    encode_video(video, np.concatenate([images[5:7], mine]))
    count = len(mine)
    message = rf"got {count + 2} frames for {count} rows; .*cameras=.*--cameras"
    with pytest.raises(SchemaError, match=message):
        read(folder)


def test_a_clip_that_starts_late_needs_a_tolerance(tmp_path):
    recording = record((4, 3), cameras=("front",))
    folder = write_folder(tmp_path / "d", recording, images="video")
    (path,) = folder.glob("meta/episodes/*/*.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[1][f"videos/{FRONT}/from_timestamp"] = 0.4003  # 0.3 ms after the frame
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(
        SchemaError, match=r"0.000300 s away.*larger tolerance_s \(--to"
    ):
        read(folder)
    assert np.array_equal(
        pictures(read(folder, tolerance_s=1e-3)), recording.images[FRONT]
    )


def test_29_97_frames_a_second_are_within_a_tolerance(tmp_path):
    count = 4000  # frame 3289 of 30000/1001 frames a second is 0.11 ms off 29.97
    recording = record((count,), cameras=())
    times = (np.arange(count) / 29.97).astype(np.float32)
    images = np.arange(count, dtype=np.uint32)[:, None].view(np.uint8)[:, [0, 1, 0]]
    images = np.broadcast_to(images[:, None, None], (count, 8, 8, 3)).copy()
    columns = {**recording.columns, "timestamp": times}
    recording = replace(recording, columns=columns)
    folder = write_folder(tmp_path / "d", recording)
    path = folder / "videos" / FRONT / "chunk-000/file-000.mp4"
    encode_video(path, images, fps=Fraction(30000, 1001))
    feature = {
        "dtype": "video",
        "shape": [8, 8, 3],
        "names": ["height", "width", "channels"],
    }
    edit_features(folder, lambda features: features.update({FRONT: feature}))
    edit_info(folder, fps=29.97)
    (path,) = folder.glob("meta/episodes/*/*.parquet")
    (row,) = pq.read_table(path).to_pylist()
    place = {"chunk_index": 0, "file_index": 0, "from_timestamp": 0.0}
    row |= {f"videos/{FRONT}/{name}": value for name, value in place.items()}
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(
        SchemaError, match=r"for frame 3\d\d\d of episode 0.*tolerance_s"
    ):
        read(folder)
    dataset = read(folder, tolerance_s=1e-2)
    rows = torch.tensor([0, 1, 3289, count - 1])
    found = dataset.replay_buffer(1)[rows][KEY].permute(0, 2, 3, 1)
    assert np.array_equal(found, images[rows])


def test_measured_timestamps_need_a_tolerance(tmp_path):
    folder = write_folder(tmp_path / "d", record((4,), cameras=()))
    times = [0.0, 0.1003, 0.2011, 0.2998]
    edit_column(
        folder, "timestamp", lambda values: values.__setitem__(slice(None), times)
    )
    with pytest.raises(SchemaError, match=r"at most 0.0011\d* s off.*--tolerance-s"):
        read(folder)
    with pytest.raises(SchemaError, match=r"within 0\.001 s"):
        read(folder, tolerance_s=1e-3)
    dataset = read(folder, tolerance_s=1e-2)
    assert dataset.frames["timestamp"].tolist() == np.float32(times).tolist()


@pytest.mark.parametrize("tolerance_s", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tmp_path, tolerance_s):
    folder = write_folder(tmp_path / "d", record((2,), cameras=()))
    with pytest.raises(ValueError, match="expected a finite tolerance_s >= 0"):
        read(folder, tolerance_s=tolerance_s)


def test_an_empty_task_beside_others_is_replaced_by_name(tmp_path):
    folder = write_folder(tmp_path / "d", record((2, 2), cameras=()))
    path = folder / "meta/tasks.parquet"
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["", "open"]}), path)
    with pytest.raises(SchemaError, match=r"task_index \[0\], which 2 .*--empty-task"):
        read(folder)
    with pytest.raises(ValueError, match="expected a text with words at empty_task"):
        read(folder, empty_task=" ")
    dataset = read(folder, empty_task="move")
    texts = dataset.instructions.decode(dataset.frames["language_instruction"])
    assert texts == ["move", "move", "open", "open"]


def test_an_empty_task_that_no_frame_has_is_passed_over(tmp_path):
    folder = write_folder(tmp_path / "d", record((2, 2), cameras=()))
    path = folder / "meta/tasks.parquet"
    texts = ["push", "open", ""]
    pq.write_table(pa.table({"task_index": [0, 1, 2], "task": texts}), path)
    assert read(folder).instructions.texts == ("push", "open")


@pytest.mark.parametrize("name", ["action", "observation.state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named_when_the_dataset_is_opened(
    tmp_path, name, value
):
    folder = write_folder(tmp_path / "d", record((3, 2), cameras=()))
    edit_column(folder, name, lambda values: values.__setitem__((4, 1), value))
    message = (
        rf"got \[{value}\] at dimensions \[1\] of frame 1 of episode 1 \(row 4\).*"
        r"exclude_episodes=\[1\] \(--exclude-episodes 1\)"
    )
    for statistics in ("exact", "stored"):
        with pytest.raises(SchemaError, match=message):
            read(folder, statistics=statistics)
    dataset = read(folder, exclude_episodes=[1])
    assert dataset.episodes.tolist() == [0]


def test_a_dimension_that_is_zero_throughout_is_read(tmp_path):
    recording = record((3, 2), cameras=())
    recording.columns["action"][:, 1] = 0.0
    folder = write_folder(tmp_path / "d", recording)
    path = folder / "meta/stats.json"
    stored = json.loads(path.read_text())
    stored["action"]["q99"][1] = 3.96e-14  # LeRobot's histogram (measured)
    path.write_text(json.dumps(stored))
    for statistics in ("exact", "stored"):
        found = read(folder, statistics=statistics).metadata.action_statistics
        assert found.q99[1] == found.max[1] == found.std[1] == 0.0


def test_quantiles_are_exact_unless_the_stored_ones_are_named(tmp_path):
    recording = record((50, 50), cameras=())
    recording.columns["action"][:, 0] = np.arange(100)
    folder = write_folder(tmp_path / "d", recording)
    path = folder / "meta/stats.json"
    stored = json.loads(path.read_text())
    stored["action"]["q99"][0] = (48.51 + 98.51) / 2  # the mean of both episodes'
    path.write_text(json.dumps(stored))
    assert read(folder).metadata.action_statistics.q99[0] == pytest.approx(98.01)
    by_name = read(folder, statistics="stored").metadata.action_statistics
    assert by_name.q99[0] == pytest.approx(73.51)
