"""Columns become a TensorDict; what contradicts the metadata is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_folders import edit_info, record, write_folder
from tensordict import MemoryMappedTensor

from torchrl_vla.data.lerobot.folder_layout import LeRobotLayout
from torchrl_vla.data.lerobot.frame_table import read_frames, write_frames
from torchrl_vla.schema import SchemaError, to_canonical


def read(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    table = write_frames(LeRobotLayout.from_folder(folder), copy)
    (copy / "instructions.json").write_text(table.to_json())
    return read_frames(copy)


def edit_column(folder, name, change):
    """Rewrite one column of the first parquet file."""
    path = sorted((folder / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    column = change(table.column(name).combine_chunks())
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, column), path)


@pytest.fixture
def recording():
    return record((4, 3), cameras=())


@pytest.fixture
def folder(tmp_path, recording):
    return write_folder(tmp_path / "push", recording)


@pytest.mark.parametrize(("version", "files"), [("v2.1", 1), ("v3.0", 1), ("v3.0", 2)])
def test_every_column_keeps_its_numbers(tmp_path, recording, version, files):
    folder = write_folder(tmp_path / "other", recording, version=version, files=files)
    frames, table = read(folder, tmp_path)
    for name, values in recording.columns.items():
        stored = frames[to_canonical(name)]
        assert torch.equal(stored, torch.from_numpy(values)), name
    assert isinstance(frames["action"], MemoryMappedTensor)
    texts = table.decode(frames["language_instruction"])
    assert texts == ["push the block"] * 4 + ["open the drawer"] * 3


def test_numbers_have_lerobots_dtypes(tmp_path, recording):
    wide = np.linspace(0, 1, 7)
    recording.columns["observation.wide"] = np.stack([wide, -wide], 1)
    recording.columns["observation.small"] = np.arange(7, dtype=np.uint8)[:, None]
    recording.columns["observation.half"] = wide.astype(np.float16)[:, None]
    folder = write_folder(tmp_path / "other", recording)
    frames, _ = read(folder, tmp_path)
    assert torch.equal(
        frames["observation", "wide"],
        torch.tensor(np.stack([wide, -wide], 1), dtype=torch.float32),
    )
    assert frames["observation", "small"].dtype == torch.int64
    assert frames["observation", "half"].dtype == torch.float32
    assert frames["next", "done"].dtype == torch.bool
    assert frames["next", "done"].shape == (7, 1)
    assert frames["timestamp"].shape == (7,)


def test_a_matrix_for_each_frame_keeps_its_shape(tmp_path, recording):
    matrix = np.arange(7 * 6, dtype=np.float32).reshape(7, 2, 3)
    folder = write_folder(tmp_path / "other", recording)
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    column = pa.array(matrix.tolist(), pa.list_(pa.list_(pa.float32())))
    pq.write_table(table.append_column("observation.matrix", column), path)
    features = LeRobotLayout.from_folder(folder).features
    declared = {
        name: {"dtype": f.dtype, "shape": f.shape, "names": f.names}
        for name, f in features.items()
    }
    declared["observation.matrix"] = {"dtype": "float32", "shape": [2, 3]}
    frames, _ = read(edit_info(folder, features=declared), tmp_path)
    assert torch.equal(frames["observation", "matrix"], torch.from_numpy(matrix))


def test_an_empty_task_is_no_instruction(tmp_path, folder):
    table = pa.table({"task_index": [0, 1], "task": ["", ""]})
    pq.write_table(table, folder / "meta/tasks.parquet")
    frames, instructions = read(folder, tmp_path)
    assert "language_instruction" not in frames
    assert len(instructions) == 0


def test_an_unknown_task_is_refused(tmp_path, folder):
    edit_column(folder, "task_index", lambda c: pa.array([7] * len(c)))
    with pytest.raises(
        SchemaError, match=r"expected task_index of \[0, 1\].*got \[7\]"
    ):
        read(folder, tmp_path)


def test_missing_rows_are_refused(tmp_path, folder):
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(SchemaError, match=r"expected 7 frames .*got 5 rows in 1"):
        read(folder, tmp_path)


def test_a_missing_column_is_refused(tmp_path, folder):
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(SchemaError, match=r"as columns in .*got no \['action'\]"):
        read(folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("action", [[1.0, 2.0, 3.0]] * 7, "expected 2 numbers a frame .*got 21 in 7"),
        ("action", [None, *[[1.0, 2.0]] * 6], "1 of them empty"),
        ("next.reward", [None, *[1.0] * 6], "1 of them empty"),
        ("frame_index", [0.5] * 7, "expected int64 at feature 'frame_index'"),
        ("frame_index", [0, 1, 2, 4, 0, 1, 2], "got frame 4 of episode 0 in place"),
        ("frame_index", [1, 2, 3, 4, 0, 1, 2], "got frame 1 of episode 0 in place"),
        ("episode_index", [0] * 6 + [1], "expected 4 frames of episode 0 .* got 6"),
        ("episode_index", [0] * 4 + [5] * 3, "expected 3 frames of episode 1 .* got 0"),
    ],
)
def test_columns_that_are_not_the_episodes_are_refused(
    tmp_path, folder, name, column, message
):
    edit_column(folder, name, lambda _: pa.array(column))
    with pytest.raises(SchemaError, match=message):
        read(folder, tmp_path)


def test_a_timestamp_that_is_late_is_refused(tmp_path, folder):
    def late(column):
        values = column.to_numpy().copy()
        values[2] += 2e-4
        return pa.array(values)

    edit_column(folder, "timestamp", late)
    with pytest.raises(SchemaError, match=r"got 0.200200 s at frame 2 of episode 0"):
        read(folder, tmp_path)


def test_float32_rounding_of_a_long_time_is_not_late(tmp_path):
    """Near 4000 s the next float32 is 2.4e-4 s away."""
    recording = record((2,), cameras=())
    time_s = 4000.00012
    recording.columns["timestamp"] = np.array([0.0, time_s], np.float32)
    folder = edit_info(write_folder(tmp_path / "long", recording), fps=1 / time_s)
    frames, _ = read(folder, tmp_path)
    assert float(frames["timestamp"][1]) == 4000.0


def test_a_timestamp_that_is_no_number_is_refused(tmp_path):
    recording = record((3, 2), cameras=())
    recording.columns["timestamp"][1] = float("nan")
    folder = write_folder(tmp_path / "push", recording)
    with pytest.raises(SchemaError, match=r"got nan s at frame 1 of episode 0"):
        read(folder, tmp_path)
