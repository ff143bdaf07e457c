"""Assembly of a LeRobot v3.0 dataset from the finished episodes of a recording."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_vla._internal.durable_files import (
    flush_to_disk,
    remove,
    write_json,
)
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.data.lerobot.table_reader import TableFile
from torchrl_vla.data.lerobot_writer.episode_stats import (
    ImageHistogram,
    Statistics,
    number_statistics,
)
from torchrl_vla.data.lerobot_writer.frame_schema import (
    OWNER,
    FrameSchema,
    index_features,
)
from torchrl_vla.data.lerobot_writer.parquet_tables import (
    FILES_PER_CHUNK,
    TASK_COLUMN,
    RollingTables,
    arrow,
    column,
    data_schema,
    numbers_of,
    place_name,
    stored,
    write_tasks,
)
from torchrl_vla.data.lerobot_writer.recording_journal import (
    INFO,
    PARTS,
    RecordedEpisode,
    RecordingSettings,
)
from torchrl_vla.data.lerobot_writer.video_encoder import (
    VideoEncoding,
    VideoFacts,
    concatenate,
)
from torchrl_vla.schema.lerobot_names import DECLARED_FILE

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = "v3.0"
_ROWS_AT_ONCE = 100
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

#: A row of ``meta/episodes``.
Row = dict[str, Any]


def assemble(
    folder: Path,
    episodes: Sequence[RecordedEpisode],
    schema: FrameSchema,
    settings: RecordingSettings,
) -> None:
    """Write the dataset, and ``meta/info.json`` last, without which it is unfinished.

    The recorded episodes are not modified, so an interrupted assembly can be repeated.
    """
    for part in PARTS:
        remove(folder / part)
    rows: list[Row] = [
        {"episode_index": index, "tasks": [], "length": episode.length}
        for index, episode in enumerate(episodes)
    ]
    tasks = _write_data(folder, episodes, schema, settings, rows)
    info: dict[str, dict[str, object]] = {}
    for feature in schema.images:
        if feature.dtype == "video":
            info[feature.name] = _write_videos(
                folder, episodes, feature.name, settings, rows
            )
    _add_image_statistics(episodes, rows)
    _write_episodes(
        folder / "meta" / "episodes", rows, file_size_mb=settings.data_file_size_mb
    )
    write_tasks(folder / "meta" / "tasks.parquet", tasks)
    statistics = _whole_statistics(
        folder, (*schema.numbers, *index_features()), episodes
    )
    write_json(
        folder / "meta" / "stats.json",
        {
            name: {key: value.tolist() for key, value in stats.items()}
            for name, stats in statistics.items()
        },
    )
    # Fields that LeRobot does not have: units, bounds, conventions.
    declared = replace(settings.metadata, action_statistics=None, state_statistics=None)
    write_json(folder / DECLARED_FILE, json.loads(declared.to_json()))
    _flush_folders(folder)
    write_json(
        folder / INFO, _info(schema, settings, info, n_tasks=len(tasks), rows=rows)
    )


def _write_data(
    folder: Path,
    episodes: Sequence[RecordedEpisode],
    schema: FrameSchema,
    settings: RecordingSettings,
    rows: list[Row],
) -> list[str]:
    """Write ``data/``, add each episode's location to its row, return the tasks."""
    tasks: dict[str, int] = {}
    start = 0
    data = RollingTables(folder / "data", file_size_mb=settings.data_file_size_mb)
    for row, episode in zip(rows, episodes, strict=True):
        origin = Origin(OWNER, repr(str(episode.table_path)), "Remove the episode.")
        with origin.reading("the columns of a recorded episode"):
            table = episode.read_table()
            texts = table.column(TASK_COLUMN).to_pylist()
            for text in dict.fromkeys(texts):
                tasks.setdefault(text, len(tasks))
            frame = np.arange(episode.length)
            index: dict[str, np.ndarray] = {
                "timestamp": (frame / settings.fps).astype(np.float32),
                "frame_index": frame,
                "episode_index": np.full_like(frame, row["episode_index"]),
                "index": start + frame,
                "task_index": np.array([tasks[text] for text in texts]),
            }
            table = _data_table(table, schema, index, row)
        place = data.place(episode.table_path.stat().st_size)
        data.write(table, place)
        row["tasks"] = list(dict.fromkeys(texts))
        row["dataset_from_index"] = start
        start += episode.length
        row["dataset_to_index"] = start
        row.update({f"data/{name}": value for name, value in place.items()})
    data.close()
    return list(tasks)


def _data_table(
    table: pa.Table, schema: FrameSchema, index: dict[str, np.ndarray], row: Row
) -> pa.Table:
    """Return an episode's table with its index columns; add statistics to its row."""
    for feature in schema.numbers:
        values = numbers_of(feature, table.column(feature.name))
        _add_statistics(row, feature.name, number_statistics(values))
    kept = [feature for feature in schema.features if feature.dtype != "video"]
    columns = [stored(table.column(feature.name)) for feature in kept]
    for feature in index_features():
        columns.append(column(feature, index[feature.name]))
        _add_statistics(row, feature.name, number_statistics(index[feature.name]))
    features = (*schema.features, *index_features())
    return arrow().table(columns, schema=data_schema(features))


def _write_videos(
    folder: Path,
    episodes: Sequence[RecordedEpisode],
    name: str,
    settings: RecordingSettings,
    rows: list[Row],
) -> dict[str, object]:
    """Write the videos of one camera, and return its entry for ``info.json``."""
    paths = [episode.video_path(name) for episode in episodes]
    for number, members in enumerate(_video_files(paths, settings.video_file_size_mb)):
        chunk, file = divmod(number, FILES_PER_CHUNK)
        place = {"chunk_index": chunk, "file_index": file}
        path = folder / "videos" / name / place_name(place, "mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [(paths[index], episodes[index].length) for index in members]
        origin = Origin(
            OWNER, f"{str(folder)!r}", "Remove the episode that is damaged."
        )
        with origin.reading(f"finished videos of {name!r}"):
            concatenate(parts, path, fps=settings.fps)
        flush_to_disk(path)
        n_before = 0
        for index in members:
            n_after = n_before + episodes[index].length
            location = {
                **place,
                "from_timestamp": n_before / settings.fps,
                "to_timestamp": n_after / settings.fps,
            }
            rows[index].update({f"videos/{name}/{k}": v for k, v in location.items()})
            n_before = n_after
    encoding = settings.encoding or VideoEncoding()
    return VideoFacts.from_file(paths[0]).info(settings.fps, encoding)


def _video_files(paths: Sequence[Path], file_size_mb: float) -> list[list[int]]:
    """Group the episodes' videos, by index, into files of at most this size."""
    files: list[list[int]] = []
    facts, size = None, 0
    for index, path in enumerate(paths):
        new_facts, new_size = VideoFacts.from_file(path), path.stat().st_size
        is_full = size + new_size >= file_size_mb * 2**20
        if not files or new_facts != facts or is_full:
            files.append([])
            size = 0
        files[-1].append(index)
        facts, size = new_facts, size + new_size
    return files


def _add_statistics(row: Row, name: str, statistics: Statistics) -> None:
    values = {f"stats/{name}/{key}": v.tolist() for key, v in statistics.items()}
    row.update(values)


def _add_image_statistics(episodes: Sequence[RecordedEpisode], rows: list[Row]) -> None:
    for row, episode in zip(rows, episodes, strict=True):
        for name, histogram in episode.histograms.items():
            _add_statistics(row, name, histogram.statistics())


def _write_episodes(folder: Path, rows: list[Row], *, file_size_mb: float) -> None:
    """Write ``meta/episodes/``: the location of each episode, then its statistics."""
    names = sorted(rows[0], key=lambda name: name.startswith("stats/"))
    tables = RollingTables(folder, file_size_mb=file_size_mb)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        table = arrow().table({name: [row[name] for row in some] for name in names})
        place = tables.place(table.nbytes)
        for name, value in place.items():
            numbers = np.full(len(some), value, np.int64)
            table = table.append_column(f"meta/episodes/{name}", [numbers])
        tables.write(table, place)
    tables.close()


def _whole_statistics(
    folder: Path, numbers: Iterable[Feature], episodes: Sequence[RecordedEpisode]
) -> dict[str, Statistics]:
    """Return the statistics of all frames, one feature at a time."""
    files = sorted((folder / "data").glob("*/*.parquet"))
    out = {}
    for feature in numbers:
        parts = []
        for path in files:
            table = TableFile.from_path(OWNER, path, "").read([feature.name])
            parts.append(numbers_of(feature, table.column(feature.name)))
        out[feature.name] = number_statistics(np.concatenate(parts))
    for name in episodes[0].histograms:
        histograms = [episode.histograms[name] for episode in episodes]
        out[name] = ImageHistogram.merge(histograms).statistics()
    return out


def _flush_folders(folder: Path) -> None:
    for part in PARTS:
        for path in (folder / part).rglob("*"):
            if path.is_dir():
                flush_to_disk(path)
    flush_to_disk(folder)


def _info(
    schema: FrameSchema,
    settings: RecordingSettings,
    videos: dict[str, dict[str, object]],
    *,
    n_tasks: int,
    rows: list[Row],
) -> dict[str, object]:
    features = FrameSchema((*schema.features, *index_features())).to_info()
    for name, values in videos.items():
        features[name]["info"] = values
    return {
        "codebase_version": _VERSION,
        "robot_type": settings.metadata.embodiment_id,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": n_tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": settings.data_file_size_mb,
        "video_files_size_in_mb": settings.video_file_size_mb,
        "fps": settings.fps,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH,
        "features": features,
    }
