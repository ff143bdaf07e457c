"""What a LeRobot folder says about itself, in formats v2.1 and v3.0."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchrl_vla.schema import SchemaError, import_extra, to_canonical

OWNER = "LeRobotDemonstrations"
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")

_VERSIONS = ("v2.1", "v3.0")
_PICTURES = ("image", "video")
_TEXT = ("string", "language")
_NUMBERS = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
)


class Feature(NamedTuple):
    """One column as ``info.json`` declares it."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None

    @property
    def is_image(self) -> bool:
        """True = images in parquet or a video."""
        return self.dtype in _PICTURES

    @property
    def is_number(self) -> bool:
        """True = a column of numbers."""
        return self.dtype in _NUMBERS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)``; the names tell where the channels are."""
        last_is_channels = self.names is None or not self.names[0].startswith("channel")
        h, w, c = self.shape if last_is_channels else (*self.shape[1:], self.shape[0])
        return c, h, w


class Clip(NamedTuple):
    """Where the images of one camera in one episode are."""

    path: Path
    start_s: float


class Episode(NamedTuple):
    """One episode; ``clips`` has one entry per video camera."""

    index: int
    length: int
    clips: dict[str, Clip]


@dataclass(frozen=True)
class LeRobotLayout:
    """The metadata of a LeRobot dataset, of either format.

    Args:
        root: the dataset's folder.
        version: ``"v2.1"`` or ``"v3.0"``.
        rate_hz: frames per second.
        robot_type: the robot's name, if it is declared.
        features: the columns by LeRobot's names.
        tasks: the texts by ``task_index``.
        episodes: in order of their index.
        data_files: the parquet files, in order.
    """

    root: Path
    version: str
    rate_hz: float
    robot_type: str | None
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: tuple[Episode, ...]
    data_files: tuple[Path, ...]

    @classmethod
    def from_folder(cls, root: Path) -> LeRobotLayout:
        """Read and check ``meta/``.

        Raises:
            FileNotFoundError: a file that the metadata promise is not there.
            SchemaError: another format, or metadata that contradict themselves: the
                recording was not finished.
        """
        info = read_info(root)
        read = _episodes_v21 if info["codebase_version"] == "v2.1" else _episodes_v30
        features = {
            name: _read_feature(name, value) for name, value in info["features"].items()
        }
        _check_features(root, features)
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
            version=info["codebase_version"],
            rate_hz=float(info["fps"]),
            robot_type=info.get("robot_type"),
            features=features,
            tasks=tasks,
            episodes=episodes,
            data_files=data_files,
        )

    @property
    def num_frames(self) -> int:
        """The number of frames of all episodes."""
        return sum(episode.length for episode in self.episodes)


def read_info(root: Path) -> dict[str, Any]:
    """Read ``meta/info.json`` and refuse a format that is not one of ours."""
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
    info = json.loads(path.read_text())
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise SchemaError(
            f"{OWNER}: expected codebase_version of {_VERSIONS} in {str(path)!r}, got "
            f"{version!r}. Convert older datasets with the scripts of LeRobot."
        )
    return info


def _read_feature(name: str, value: dict[str, Any]) -> Feature:
    dtype, names = value["dtype"], _flat_names(value.get("names"))
    if dtype not in (*_NUMBERS, *_PICTURES, *_TEXT):
        raise SchemaError(
            f"{OWNER}: expected a dtype of {(*_NUMBERS, *_PICTURES, *_TEXT)} at "
            f"feature {name!r}, got {dtype!r}."
        )
    shape = tuple(int(size) for size in value.get("shape") or (1,))
    details = {**(value.get("info") or {}), **(value.get("video_info") or {})}
    if dtype in _PICTURES and (
        details.get("is_depth_map") or details.get("video.is_depth_map")
    ):
        raise SchemaError(
            f"{OWNER}: expected RGB cameras, got a depth map at feature {name!r}. "
            "Remove the feature from the dataset with `lerobot-edit-dataset`."
        )
    if dtype in _PICTURES and len(shape) != 3:
        raise SchemaError(
            f"{OWNER}: expected a shape of three at camera {name!r}, got {shape}."
        )
    return Feature(dtype, shape, names)


def _flat_names(names: Any) -> tuple[str, ...] | None:
    """Names stand in a list, or in lists within a dictionary of groups."""
    if names is None:
        return None
    if isinstance(names, dict):
        flat = [
            item
            for group, value in names.items()
            for item in (value if isinstance(value, list) else [group])
        ]
        return tuple(str(name) for name in flat)
    return tuple(str(name) for name in names) or None


def _check_features(root: Path, features: dict[str, Feature]) -> None:
    missing = [name for name in INDEX_COLUMNS if name not in features]
    if missing:
        raise SchemaError(
            f"{OWNER}: expected the features {INDEX_COLUMNS} in {str(root)!r}, got no "
            f"{missing}."
        )
    leaves: dict[tuple[str, ...], str] = {}
    groups: dict[tuple[str, ...], str] = {}
    for name in features:
        key = to_canonical(name)
        path = (key,) if isinstance(key, str) else key
        above = [path[:depth] for depth in range(1, len(path))]
        for other in (*(leaves.get(part) for part in (*above, path)), groups.get(path)):
            if other is not None:
                raise SchemaError(
                    f"{OWNER}: expected features with keys of their own, got {name!r} "
                    f"and {other!r}, which would lie on one another. Rename one."
                )
        leaves[path] = name
        groups.update(dict.fromkeys(above, name))


def _check_episodes(
    root: Path, info: dict[str, Any], episodes: tuple[Episode, ...]
) -> None:
    found = {
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
    }
    wrong = {name: n for name, n in found.items() if n != info.get(name)}
    if wrong or not episodes:
        raise SchemaError(
            f"{OWNER}: expected the episodes of {str(root)!r} to add up to "
            f"{ {name: info.get(name) for name in found} } of 'meta/info.json', got "
            f"{found}. The recording was not finished: finish it with "
            "`dataset.finalize()`, or fetch the dataset again."
        )


def _episodes_v21(root: Path, info: dict[str, Any], videos: list[str]) -> Any:
    rows = _read_lines(root / "meta" / "episodes.jsonl")
    tasks = {
        int(row["task_index"]): row["task"]
        for row in _read_lines(root / "meta" / "tasks.jsonl")
    }
    episodes, data_files = [], []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        number = int(row["episode_index"])
        place = {
            "episode_chunk": number // info["chunks_size"],
            "episode_index": number,
        }
        data_files.append(root / info["data_path"].format(**place))
        clips = {
            name: Clip(root / info["video_path"].format(video_key=name, **place), 0.0)
            for name in videos
        }
        episodes.append(Episode(number, int(row["length"]), clips))
    return tasks, tuple(episodes), tuple(data_files)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    _check_is_there(path)
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _episodes_v30(root: Path, info: dict[str, Any], videos: list[str]) -> Any:
    tasks = {}
    for row in _read_rows(root / "meta" / "tasks.parquet"):
        (text,) = (value for name, value in row.items() if name != "task_index")
        tasks[int(row["task_index"])] = text
    folder = root / "meta" / "episodes"
    files = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not files:
        _check_is_there(folder / "chunk-000" / "file-000.parquet")
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names += [
        f"videos/{video}/{name}"
        for video in videos
        for name in ("chunk_index", "file_index", "from_timestamp")
    ]
    rows = [row for path in files for row in _read_rows(path, names)]
    episodes, data_files = [], {}
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        place = _place(row, "data")
        data_files[tuple(place.values())] = root / info["data_path"].format(**place)
        clips = {}
        for name in videos:
            path = info["video_path"].format(
                video_key=name, **_place(row, f"videos/{name}")
            )
            clips[name] = Clip(root / path, row[f"videos/{name}/from_timestamp"])
        episodes.append(Episode(int(row["episode_index"]), int(row["length"]), clips))
    ordered = tuple(data_files[place] for place in sorted(data_files))
    return tasks, tuple(episodes), ordered


def _place(row: dict[str, Any], prefix: str) -> dict[str, int]:
    return {
        name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")
    }


def _read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    table = open_parquet(path).read(columns)
    missing = sorted(set(columns or ()) - set(table.column_names))
    if missing:
        raise SchemaError(f"{OWNER}: expected columns {missing} in {str(path)!r}.")
    return table.to_pylist()


def open_parquet(path: Path) -> Any:
    """Open a parquet file; one whose writer was not closed has no end.

    Raises:
        FileNotFoundError: there is none.
        SchemaError: it was not finished.
    """
    parquet = import_extra("pyarrow.parquet", "datasets", OWNER)
    arrow = import_extra("pyarrow", "datasets", OWNER)
    _check_is_there(path)
    try:
        return parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise SchemaError(
            f"{OWNER}: expected a finished parquet file at {str(path)!r}, got "
            f"{error}. The recording was not finished: finish it with "
            "`dataset.finalize()`, or fetch the dataset again."
        ) from error


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{OWNER}: expected {str(path)!r}, got nothing. The recording was not "
            "finished (LeRobot writes this file in `dataset.finalize()`), or the "
            "download was not."
        )


def values_per_frame(shape: tuple[int, ...]) -> int:
    """Return how many numbers a column holds for each frame."""
    return math.prod(shape)
