"""Layout of a LeRobot dataset folder, formats v2.1 and v3.0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json, read_json_lines
from torchrl_vla._internal.safe_paths import check_name, fill_template, path_below
from torchrl_vla.data.lerobot.feature_selection import (
    EVERYTHING,
    Selection,
    select_features,
)
from torchrl_vla.data.lerobot.lerobot_feature import (
    IMAGE_DTYPES,
    INDEX_FEATURES,
    NUMBER_DTYPES,
    OWNER,
    TEXT_DTYPES,
    Feature,
    FeatureInfo,
)
from torchrl_vla.data.lerobot.table_reader import TableFile
from torchrl_vla.schema import ACTION_KEY, STATE_KEY, SchemaError

T = TypeVar("T")

FETCH_AGAIN = (
    "The recording was not finished (LeRobot writes this file in "
    "`dataset.finalize()`), or the download was not: fetch the dataset again."
)

_VERSIONS = ("v2.1", "v3.0")
_MOST_NUMBERS, _MOST_PIXELS = 1 << 24, 1 << 26


class LeRobotInfo(TypedDict):
    """Contents of ``meta/info.json`` that this reader uses."""

    codebase_version: str | None
    fps: float
    robot_type: str | None
    features: dict[str, FeatureInfo]
    total_episodes: int | None
    total_frames: int | None
    chunks_size: int | None
    data_path: str
    video_path: str | None


class _Task(TypedDict):
    task_index: int
    task: str


class _Episode(TypedDict):
    episode_index: int
    length: int


class Clip(NamedTuple):
    """Location of the images of one camera in one episode."""

    path: Path
    start_s: float


@dataclass(frozen=True)
class Episode:
    """One episode; ``clips`` has one entry per video camera."""

    index: int
    length: int
    clips: dict[str, Clip]


#: Tasks by index, episodes and data files.
_Contents = tuple[dict[int, str], tuple[Episode, ...], tuple[Path, ...]]


@dataclass(frozen=True)
class LeRobotLayout:
    """Checked contents of ``meta/`` in a LeRobot dataset of either format.

    Args:
        root: the dataset's folder.
        version: ``"v2.1"`` or ``"v3.0"``.
        rate_hz: frames per second.
        robot_type: the declared name of the robot.
        features: the selected columns by LeRobot's names.
        tasks: the texts by ``task_index``.
        episodes: in order of their index.
        data_files: the parquet files, in order.
        selection: what was asked for.
    """

    root: Path
    version: str
    rate_hz: float
    robot_type: str | None
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: tuple[Episode, ...]
    data_files: tuple[Path, ...]
    selection: Selection = EVERYTHING

    @classmethod
    def from_folder(
        cls, root: Path, selection: Selection = EVERYTHING
    ) -> LeRobotLayout:
        """Read and check ``meta/``; cameras that are not selected are passed over.

        Raises:
            FileNotFoundError: a file that the metadata list is missing.
            SchemaError: the format is unknown, or the metadata are inconsistent, as
                after an unfinished recording.
        """
        info = read_info(root)
        version = str(info["codebase_version"])
        read = _episodes_v21 if version == "v2.1" else _episodes_v30
        origin = info_origin(root)
        features = {
            name: _read_feature(origin, name, value)
            for name, value in info["features"].items()
        }
        _check_features(root, features)
        features = select_features(features, selection)
        for name, feature in features.items():
            if feature.key in (ACTION_KEY, STATE_KEY) and not feature.is_number:
                raise origin.refuse("numbers", feature.dtype, f"features.{name}.dtype")
        videos = [name for name, value in features.items() if value.dtype == "video"]
        tasks, episodes, data_files = read(root, info, videos)
        _check_episodes(root, info, episodes)
        clips = {clip.path for episode in episodes for clip in episode.clips.values()}
        for path in (*data_files, *sorted(clips)):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{OWNER}: expected {str(path.relative_to(root))!r} in "
                    f"{str(root)!r}, got nothing. The copy or download was not "
                    "finished: fetch the dataset again."
                )
        return cls(
            root=root,
            version=version,
            rate_hz=float(info["fps"]),
            robot_type=info["robot_type"],
            features=features,
            tasks={
                number: text if text.strip() else selection.empty_task or text
                for number, text in tasks.items()
            },
            episodes=episodes,
            data_files=data_files,
            selection=selection,
        )

    @property
    def num_frames(self) -> int:
        """The number of frames of all episodes."""
        return sum(episode.length for episode in self.episodes)


def read_info(root: Path) -> LeRobotInfo:
    """Read ``meta/info.json`` and refuse an unknown format."""
    path = root / "meta" / "info.json"
    if not path.is_file() and (root / "UNFINISHED.txt").is_file():
        raise SchemaError(
            f"{OWNER}: expected a finished dataset at {str(root)!r}, got an unfinished "
            "recording. Finish it with LeRobotWriter.resume(folder).close()."
        )
    if not path.is_file():
        there = sorted(entry.name for entry in root.iterdir())
        raise FileNotFoundError(
            f"{OWNER}: expected a LeRobot dataset with 'meta/info.json' at "
            f"{str(root)!r}, got {there}. Pass the dataset's own folder."
        )
    info = read_json(OWNER, path, LeRobotInfo, remedy=FETCH_AGAIN)
    version, fps = info["codebase_version"], info["fps"]
    if version not in _VERSIONS:
        raise SchemaError(
            f"{OWNER}: expected codebase_version of {_VERSIONS} in {str(path)!r}, got "
            f"{version!r}. Convert older datasets with LeRobot's scripts."
        )
    if not 0 < fps < math.inf:
        raise info_origin(root).refuse("a positive number", fps, "fps")
    return info


def info_origin(root: Path) -> Origin:
    """Return the origin of what ``meta/info.json`` holds."""
    return Origin(OWNER, repr(str(root / "meta" / "info.json")), FETCH_AGAIN)


def _read_feature(origin: Origin, name: str, value: FeatureInfo) -> Feature:
    check_name(origin, name, "a feature")
    dtype, names = value["dtype"], _flat_names(value["names"])
    known = (*NUMBER_DTYPES, *IMAGE_DTYPES, *TEXT_DTYPES)
    if dtype not in known:
        raise SchemaError(
            f"{OWNER}: expected a dtype of {known} at feature {name!r}, got {dtype!r}."
        )
    shape = tuple(value["shape"] or (1,))
    most = _MOST_PIXELS if dtype in IMAGE_DTYPES else _MOST_NUMBERS
    if min(shape) < 1 or math.prod(shape) > most:
        expected = f"sizes from 1 on of at most {most} numbers together"
        raise origin.refuse(expected, list(shape), f"features.{name}.shape")
    details = {**(value["info"] or {}), **(value["video_info"] or {})}
    is_depth = details.get("is_depth_map") or details.get("video.is_depth_map")
    return Feature(name, dtype, shape, names, is_depth=bool(is_depth))


def _flat_names(
    names: list[object] | dict[str, object] | None,
) -> tuple[str, ...] | None:
    """Return names that are stored in a list, or in lists by group."""
    if not isinstance(names, dict):
        return None if not names else tuple(map(str, names))
    flat: list[str] = []
    for group, value in names.items():
        flat += map(str, value) if isinstance(value, list) else [group]
    return tuple(flat)


def _check_features(root: Path, features: dict[str, Feature]) -> None:
    missing = [name for name in INDEX_FEATURES if name not in features]
    if missing:
        raise SchemaError(
            f"{OWNER}: expected the features {tuple(INDEX_FEATURES)} in "
            f"{str(root)!r}, got no {missing}."
        )
    for name, declared in INDEX_FEATURES.items():
        feature = features[name]
        is_same = feature.dtype.strip("u0123456789") == declared.strip("0123456789")
        if not is_same or math.prod(feature.shape) != 1:
            expected = f"one {declared} a frame"
            got = f"{feature.dtype} of shape {feature.shape}"
            raise info_origin(root).refuse(expected, got, f"features.{name}")


def _check_episodes(
    root: Path, info: LeRobotInfo, episodes: tuple[Episode, ...]
) -> None:
    found = {
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
    }
    declared = {name: info[name] for name in ("total_episodes", "total_frames")}
    wrong = {name: n for name, n in found.items() if n != declared[name]}
    if wrong or not episodes:
        raise SchemaError(
            f"{OWNER}: expected the episodes of {str(root)!r} to add up to "
            f"{declared} of 'meta/info.json', got "
            f"{found}. The recording was not finished: finish it with "
            "`dataset.finalize()`, or fetch the dataset again."
        )


def _episodes_v21(root: Path, info: LeRobotInfo, videos: list[str]) -> _Contents:
    rows = _read_lines(root / "meta" / "episodes.jsonl", _Episode)
    lines = _read_lines(root / "meta" / "tasks.jsonl", _Task)
    tasks = {line["task_index"]: line["task"] for line in lines}
    per_chunk = info["chunks_size"] or 0
    if per_chunk < 1:
        raise info_origin(root).refuse(
            "a positive number", info["chunks_size"], "chunks_size"
        )
    episodes, data_files = [], []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        number = row["episode_index"]
        place = {"episode_chunk": number // per_chunk, "episode_index": number}
        data_files.append(_file(root, info, "data_path", place))
        clips = {
            name: Clip(
                _file(root, info, "video_path", {"video_key": name, **place}), 0.0
            )
            for name in videos
        }
        episodes.append(Episode(number, row["length"], clips))
    return tasks, tuple(episodes), tuple(data_files)


def _episodes_v30(root: Path, info: LeRobotInfo, videos: list[str]) -> _Contents:
    tasks = _read_tasks(root / "meta" / "tasks.parquet")
    folder = root / "meta" / "episodes"
    files = sorted(folder.glob("chunk-*/file-*.parquet"))
    columns: dict[str, type] = {"episode_index": int, "length": int}
    for prefix in ("data", *(f"videos/{name}" for name in videos)):
        columns |= {f"{prefix}/chunk_index": int, f"{prefix}/file_index": int}
    columns |= {f"videos/{name}/from_timestamp": float for name in videos}
    rows = [
        row
        for path in files or [folder / "chunk-000" / "file-000.parquet"]
        for row in open_table(path).rows(columns)
    ]
    episodes, data_files = [], {}
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        place = _place(row, "data")
        data_files[tuple(place.values())] = _file(root, info, "data_path", place)
        clips = {}
        for name in videos:
            at = _place(row, f"videos/{name}")
            path = _file(root, info, "video_path", {"video_key": name, **at})
            start_s = row[f"videos/{name}/from_timestamp"]
            if not math.isfinite(start_s):
                origin = Origin(OWNER, f"{str(folder)!r}", FETCH_AGAIN)
                raise origin.refuse("a time", start_s, f"videos/{name}/from_timestamp")
            clips[name] = Clip(path, start_s)
        episodes.append(Episode(row["episode_index"], row["length"], clips))
    ordered = tuple(data_files[place] for place in sorted(data_files))
    return tasks, tuple(episodes), ordered


def _read_tasks(path: Path) -> dict[int, str]:
    """Read the texts, which may be the index of a pandas table."""
    table = open_table(path)
    with table.origin.reading("'task_index' beside one column of texts"):
        (name,) = {*table.file.schema_arrow.names} - {"task_index"}
    rows = table.rows({"task_index": int, name: str})
    return {row["task_index"]: row[name] for row in rows}


def _place(row: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


def _file(
    root: Path, info: LeRobotInfo, template: str, values: Mapping[str, int | str]
) -> Path:
    """Return the file of a template of ``info.json``, below the dataset's folder."""
    origin = info_origin(root)
    text = {"data_path": info["data_path"], "video_path": info["video_path"]}[template]
    if text is None:
        raise origin.refuse(f"{template!r}", "none")
    filled = fill_template(origin, text, values, template)
    return path_below(origin, root, filled, template)


def _read_lines(path: Path, kind: type[T]) -> list[T]:
    return read_json_lines(OWNER, path, kind, remedy=FETCH_AGAIN)


def open_table(path: Path) -> TableFile:
    """Open a parquet file of the dataset; see :meth:`TableFile.from_path`."""
    return TableFile.from_path(OWNER, path, FETCH_AGAIN)
