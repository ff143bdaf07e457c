"""Memory-mapped TensorDict of the numbers of a LeRobot dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin, read_bytes
from torchrl_vla._internal.safe_paths import path_below
from torchrl_vla.data.lerobot.encoded_picture import check_picture
from torchrl_vla.data.lerobot.folder_layout import OWNER, LeRobotLayout, open_table
from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.data.lerobot.table_reader import TableFile
from torchrl_vla.data.mapped_frames import map_frames
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    INSTRUCTION_KEY,
    InstructionTable,
    SchemaError,
    import_extra,
)

if TYPE_CHECKING:
    import pyarrow as pa

COPY_AGAIN = "Delete this folder of the cache: the dataset is then copied again."
_ROWS_AT_ONCE, _NUMBERS_AT_ONCE = 1024, 1 << 24
_MOST_PACKED, _ALWAYS_COPIED_BYTES = 1000, 1 << 30


def write_frames(layout: LeRobotLayout, folder: Path) -> InstructionTable:
    """Copy all columns of numbers and all images in parquet to ``folder``.

    Floats become float32 and integers int64, as in ``LeRobotDataset``. One batch of
    rows is in memory at a time.

    Returns:
        The texts of ``language_instruction``; empty if the dataset has no task.

    Raises:
        SchemaError: the columns contradict the metadata, or frames are missing.
    """
    numbers = {k: v for k, v in layout.features.items() if v.is_number}
    images = [k for k, v in layout.features.items() if v.dtype == "image"]
    files = [open_table(path) for path in layout.data_files]
    _check_columns(layout, files, [*numbers, *images])
    _check_size(layout, numbers)
    table, task_ids = _tasks(layout)
    frames = _allocate(layout, numbers, folder / "frames", with_task=len(table) > 0)
    row = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(ImageWriter(layout.root, folder, layout.features[name]))
            for name in images
        ]
        for file, batch in _batches(layout, files, [*numbers, *images]):
            rows = slice(row, row + batch.num_rows)
            for name, feature in numbers.items():
                values = _numbers(file.origin, feature, batch.column(name))
                column = frames.get(feature.key)
                if feature.columns is None:
                    column[rows] = values
                else:
                    column[rows, slice(*feature.columns)] = values
            for writer in writers:
                writer.extend(batch.column(writer.name))
            row += batch.num_rows
    _check_frames(layout, frames)
    if len(table):
        frames.get(INSTRUCTION_KEY).copy_(_instructions(layout, frames, task_ids))
    return table


def _batches(
    layout: LeRobotLayout, files: list[TableFile], columns: list[str]
) -> Iterator[tuple[TableFile, pa.RecordBatch]]:
    widths = [math.prod(layout.features[name].shape) for name in columns]
    rows = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(widths)))
    for file in files:
        for batch in file.batches(rows, columns):
            yield file, batch


class ImageWriter:
    """Writer of the encoded images of one camera to one file, with their offsets.

    Args:
        root: the dataset's folder.
        folder: of the cache.
        feature: the camera.
    """

    def __init__(self, root: Path, folder: Path, feature: Feature) -> None:
        self.name, self._shape, self._root = feature.name, feature.image_shape, root
        self._folder = folder / "images" / self.name
        self._folder.mkdir(parents=True)
        self._blob = (self._folder / "bytes.bin").open("wb")
        self._ends = [0]

    def extend(self, column: pa.Array) -> None:
        """Append the images of one batch of rows.

        Raises:
            FileNotFoundError: there is no file at a path.
            SchemaError: names the row; it has no picture, one that cannot be decoded
                or has another size, or a path that leaves the dataset's folder.
        """
        origin = Origin(OWNER, f"camera {self.name!r}", "Fetch the dataset again.")
        kinds = {}
        with origin.reading("a column of {'bytes': ..., 'path': ...}"):
            kinds = {field.name: str(field.type) for field in column.type}
        wanted = ("binary", "large_binary", "null", "string", "large_string")
        if [kinds.get(name) in wanted for name in ("bytes", "path")] != [True, True]:
            raise origin.refuse("a column of {'bytes': ..., 'path': ...}", kinds)
        for image in column.to_pylist():
            row = origin.row(f"row {len(self._ends) - 1}")
            data = image["bytes"] if image else None
            if data is None and image and image["path"]:
                path = path_below(row, self._root, str(image["path"]), "a picture")
                remedy = f"It is the picture of {row.place}. {row.remedy}"
                data = read_bytes(Origin.of_file(OWNER, path, remedy), path)
            if data is None:
                raise row.refuse("an image in each frame", "none")
            data = data.encode() if type(data) is str else data
            check_picture(data, self._shape, row)
            self._blob.write(data)
            self._ends.append(self._ends[-1] + len(data))

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the offsets."""
        self._blob.close()
        np.save(self._folder / "ends.npy", np.asarray(self._ends, dtype=np.int64))


def _check_columns(
    layout: LeRobotLayout, files: list[TableFile], names: list[str]
) -> None:
    for file in files:
        file.check_columns(names, "the features of 'meta/info.json' as columns")
    rows = sum(file.num_rows for file in files)
    if rows != layout.num_frames:
        raise SchemaError(
            f"{OWNER}: expected {layout.num_frames} frames (total_frames of "
            f"'meta/info.json') in {str(layout.root)!r}, got {rows} rows in "
            f"{len(files)} files. The recording or the download was not finished."
        )


def _check_size(layout: LeRobotLayout, numbers: dict[str, Feature]) -> None:
    """Refuse sizes that the data files cannot hold, before they are allocated."""
    sizes = [
        _dtype(feature).itemsize * math.prod(feature.shape)
        for feature in numbers.values()
    ]
    stored = sum(path.stat().st_size for path in layout.data_files)
    declared = layout.num_frames * sum(sizes)
    if declared > _MOST_PACKED * stored + _ALWAYS_COPIED_BYTES:
        largest = max(numbers, key=lambda name: math.prod(numbers[name].shape))
        raise SchemaError(
            f"{OWNER}: expected numbers that {len(layout.data_files)} data files of "
            f"{stored} bytes can hold, got {declared} bytes declared, most of them at "
            f"feature {largest!r}. Correct its shape in 'meta/info.json'."
        )


def _dtype(feature: Feature) -> torch.dtype:
    if feature.dtype == "bool":
        return torch.bool
    return torch.float32 if feature.dtype.startswith("float") else torch.int64


def _allocate(
    layout: LeRobotLayout, numbers: dict[str, Feature], folder: Path, *, with_task: bool
) -> TensorDict:
    n_frames = layout.num_frames
    frames = TensorDict({}, [n_frames])
    for feature in numbers.values():
        parts = [part for part in numbers.values() if part.key == feature.key]
        shape = feature.frame_shape
        if feature.columns is not None:
            shape = (sum(part.shape[0] for part in parts),)
        dtype = reduce(torch.promote_types, map(_dtype, parts))
        empty = torch.zeros((), dtype=dtype)
        frames.set(feature.key, empty.expand((n_frames, *shape)))
    if with_task:
        frames.set(INSTRUCTION_KEY, torch.zeros((), dtype=torch.int64).expand(n_frames))
    return frames.memmap_like(str(folder))


def _numbers(origin: Origin, feature: Feature, column: pa.Array) -> Tensor:
    with origin.reading("numbers", feature.name):
        return _checked_numbers(origin, feature, column)


def _checked_numbers(origin: Origin, feature: Feature, column: pa.Array) -> Tensor:
    n_rows, per_frame = len(column), math.prod(feature.shape)
    # LeRobot's `datasets`, once imported, makes a matrix an extension type.
    if isinstance(column, import_extra("pyarrow", "datasets", OWNER).ExtensionArray):
        column = column.storage
    nulls = column.null_count
    while column.type.num_fields:
        column = column.flatten()
        nulls += column.null_count
    if nulls or len(column) != n_rows * per_frame:
        raise SchemaError(
            f"{OWNER}: expected {per_frame} numbers a frame (shape {feature.shape}) at "
            f"feature {feature.name!r} in {origin.place}, got {len(column)} in "
            f"{n_rows} rows, {nulls} of them empty."
        )
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise origin.refuse("numbers", f"{column.type}", feature.name)
    if values.dtype.kind == "f" and _dtype(feature) != torch.float32:
        raise SchemaError(
            f"{OWNER}: expected {feature.dtype} at feature {feature.name!r} in "
            f"{origin.place}, as 'meta/info.json' says, got {values.dtype}."
        )
    return torch.tensor(values, dtype=_dtype(feature)).view(
        n_rows, *feature.frame_shape
    )


def _tasks(layout: LeRobotLayout) -> tuple[InstructionTable, dict[int, int]]:
    """Return the table of texts and the id of each task."""
    table = InstructionTable()
    tasks = {number: text for number, text in layout.tasks.items() if text.strip()}
    return table, {number: table.add(text) for number, text in tasks.items()}


def _instructions(
    layout: LeRobotLayout, frames: TensorDict, task_ids: dict[int, int]
) -> Tensor:
    numbers, which = frames.get("task_index").unique(return_inverse=True)
    unknown = sorted(set(numbers.tolist()) - set(task_ids))
    empty = [number for number in unknown if number in layout.tasks]
    if empty:
        rows = torch.isin(frames.get("task_index"), torch.tensor(empty))
        raise SchemaError(
            f"{OWNER}: expected a text for each of the tasks in "
            f"{str(layout.root / 'meta')!r}, got an empty one at task_index {empty}, "
            f"which {int(rows.sum())} frames have. Pass empty_task='...' "
            "(--empty-task TEXT) to give them a text."
        )
    if unknown:
        raise SchemaError(
            f"{OWNER}: expected task_index of {sorted(task_ids)} (the tasks of "
            f"{str(layout.root / 'meta')!r}), got {unknown}."
        )
    return torch.tensor([task_ids[number] for number in numbers.tolist()])[which]


def _check_frames(layout: LeRobotLayout, frames: TensorDict) -> None:
    """Refuse rows that contradict the episodes in the metadata."""
    episode, frame = frames.get(EPISODE_KEY), frames.get(FRAME_KEY)
    found = dict(
        zip(
            *(part.tolist() for part in episode.unique(return_counts=True)), strict=True
        )
    )
    lengths = {entry.index: entry.length for entry in layout.episodes}
    for number in sorted({**lengths, **found}):
        if lengths.get(number) != found.get(number):
            raise SchemaError(
                f"{OWNER}: expected {lengths.get(number, 0)} frames of episode "
                f"{number} (declared in 'meta/'), got {found.get(number, 0)}."
            )
    runs = torch.unique_consecutive(episode, return_counts=True)[1].tolist()
    counted = torch.cat([torch.arange(length) for length in runs])
    gaps = (frame != counted).nonzero()
    if len(gaps):
        row = int(gaps[0])
        raise SchemaError(
            f"{OWNER}: expected the frames of an episode from 0 on without gaps, got "
            f"frame {int(frame[row])} of episode {int(episode[row])} in place of "
            f"{int(counted[row])} (row {row})."
        )
    time_s = frames.get("timestamp").double()
    late = time_s - frame.double() / layout.rate_hz
    rounding = time_s.abs() * torch.finfo(torch.float32).eps
    tolerance_s = layout.selection.tolerance_s
    off = (late.abs() > tolerance_s + rounding).nonzero()
    if len(off):
        row = int(off[0])
        raise SchemaError(
            f"{OWNER}: expected timestamps within {tolerance_s} s of frame_index / fps "
            f"(fps={layout.rate_hz:g}), got {time_s[row]:.6f} s at frame "
            f"{int(frame[row])} of episode {int(episode[row])} and {len(off) - 1} "
            f"more, at most {late.abs().max():.6f} s off. If these times were "
            "measured, pass a larger tolerance_s (--tolerance-s)."
        )


def read_frames(folder: Path) -> tuple[TensorDict, InstructionTable]:
    """Open a folder that :func:`write_frames` wrote."""
    table = InstructionTable.from_json(folder / "instructions.json")
    return map_frames(OWNER, folder / "frames", COPY_AGAIN), table
