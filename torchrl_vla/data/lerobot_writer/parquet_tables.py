"""Parquet files of a LeRobot dataset."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from torchrl_vla._internal.durable_files import flush_to_disk
from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.data.lerobot_writer.frame_schema import OWNER
from torchrl_vla.schema import import_extra

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Files in one ``chunk-<number>`` folder, as in LeRobot.
FILES_PER_CHUNK = 1000
#: Column of the task's text in the tables of single episodes.
TASK_COLUMN = "task"

_IMAGES_AT_ONCE = 256


def arrow() -> ModuleType:
    """Import pyarrow."""
    return import_extra("pyarrow", "datasets", OWNER)


def parquet() -> ModuleType:
    """Import pyarrow.parquet."""
    return import_extra("pyarrow.parquet", "datasets", OWNER)


def encode_png(image: np.ndarray) -> bytes:
    """Encode RGB uint8 ``[h, w, 3]`` as PNG."""
    pil = import_extra("PIL.Image", "datasets", OWNER)
    stream = io.BytesIO()
    pil.fromarray(image).save(stream, format="png")
    return stream.getvalue()


def column(
    feature: Feature, values: np.ndarray | Sequence[bytes]
) -> pa.Array | pa.ChunkedArray:
    """Return the arrow column of one feature.

    Args:
        feature: declaration of the column.
        values: numbers ``[N, *shape]``, or the PNG bytes of an ``image`` feature.
    """
    pa = arrow()
    if feature.dtype == "image":
        rows = [
            {"bytes": data, "path": f"frame-{i:06d}.png"}
            for i, data in enumerate(values)
        ]
        kind = field(feature).type
        parts = [  # an array holds at most 2 GiB
            pa.array(rows[start : start + _IMAGES_AT_ONCE], kind)
            for start in range(0, len(rows), _IMAGES_AT_ONCE)
        ]
        return pa.chunked_array(parts, kind)
    flat = pa.array(np.ascontiguousarray(values).ravel(), _value_type(feature))
    if feature.shape == (1,):
        return flat
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, type=field(feature).type)
    for size in reversed(feature.shape):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(offsets, flat)
    return flat


def field(feature: Feature) -> pa.Field:
    """Return the arrow field of one feature, with LeRobot's metadata."""
    pa = arrow()
    name, shape = feature.name, feature.shape
    if feature.dtype == "image":
        parts = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
        return pa.field(name, pa.struct(parts))
    kind = _value_type(feature)
    if shape == (1,):
        return pa.field(name, kind)
    if len(shape) == 1:
        return pa.field(name, pa.list_(kind, shape[0]))
    for _ in shape:
        kind = pa.list_(kind)
    extension = f"datasets.features.features.Array{len(shape)}DExtensionType"
    marks = {
        "ARROW:extension:name": extension,
        "ARROW:extension:metadata": json.dumps([list(shape), feature.dtype]),
    }
    return pa.field(name, kind, metadata=marks)


def _value_type(feature: Feature) -> pa.DataType:
    pa = arrow()
    return pa.bool_() if feature.dtype == "bool" else pa.from_numpy_dtype(feature.dtype)


def data_schema(features: Sequence[Feature]) -> pa.Schema:
    """Return the schema of ``data/``, which has no columns for videos."""
    columns = [feature for feature in features if feature.dtype != "video"]
    described = {feature.name: _described(feature) for feature in columns}
    marks = {"huggingface": json.dumps({"info": {"features": described}})}
    return arrow().schema([field(feature) for feature in columns], metadata=marks)


def _described(feature: Feature) -> dict[str, object]:
    """Return a feature's declaration in the format of the ``datasets`` package."""
    value: dict[str, object] = {"dtype": feature.dtype, "_type": "Value"}
    if feature.dtype == "image":
        return {"_type": "Image"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    return {
        "shape": list(feature.shape),
        "dtype": feature.dtype,
        "_type": f"Array{len(feature.shape)}D",
    }


def stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without extension types.

    LeRobot's ``datasets`` registers them in a process that imports it.
    """
    pa = arrow()
    if isinstance(column.type, pa.ExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks])
    return column


def numbers_of(feature: Feature, column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as ``[N, *shape]``, the inverse of :func:`column`."""
    parts = [np.empty((0, *feature.shape), feature.dtype)]
    for values in stored(column).chunks:
        n_rows = len(values)
        while values.type.num_fields:
            values = values.flatten()
        flat = values.to_numpy(zero_copy_only=False)
        parts.append(flat.reshape(n_rows, *feature.shape))
    return np.concatenate(parts)


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write ``tasks.parquet``, which pandas reads with the texts as index."""
    pa = arrow()
    texts = {"name": "task", "field_name": "task", "metadata": None}
    numbers = {"name": "task_index", "field_name": "task_index", "metadata": None}
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**numbers, "pandas_type": "int64", "numpy_type": "int64"},
            {**texts, "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    schema = pa.schema(
        [pa.field("task_index", pa.int64()), pa.field("task", pa.string())],
        metadata={"pandas": json.dumps(described)},
    )
    columns = {"task_index": list(range(len(tasks))), "task": list(tasks)}
    parquet().write_table(pa.table(columns, schema=schema), path)
    flush_to_disk(path)


class RollingTables:
    """Writer of numbered parquet files, ``chunk-000/file-000.parquet`` and so on.

    Args:
        folder: of the chunks.

    Keyword Args:
        file_size_mb: a part that would exceed this size starts a new file.
    """

    def __init__(self, folder: Path, *, file_size_mb: float) -> None:
        self._folder = folder
        self._limit = file_size_mb * 2**20
        self._n_files = 0
        self._writer: pq.ParquetWriter | None = None
        self._file: BinaryIO | None = None

    def place(self, size: int) -> dict[str, int]:
        """Return the chunk and file of the next part, of about ``size`` bytes."""
        if self._file is not None and self._file.tell() + size >= self._limit:
            self.close()
        number = self._n_files - (self._file is not None)
        chunk, file = divmod(number, FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def write(self, table: pa.Table, place: Mapping[str, int]) -> None:
        """Append a part, as one row group, to the file of its place."""
        if self._writer is None:
            path = self._folder / place_name(place, "parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = parquet().ParquetWriter(self._file, table.schema)
            self._n_files += 1
        self._writer.write_table(table, row_group_size=max(1, len(table)))

    def close(self) -> None:
        """Finish the current file."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            flush_to_disk(Path(self._file.name))
        self._writer = self._file = None


def place_name(place: Mapping[str, int], suffix: str) -> str:
    """Return the path of a numbered file, e.g. ``chunk-000/file-002.mp4``."""
    return f"chunk-{place['chunk_index']:03d}/file-{place['file_index']:03d}.{suffix}"
