"""Layout of a LeRobot dataset folder, formats v2.1 and v3.0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from torchrl_vla._internal.json_source import read_json
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
from torchrl_vla.schema import SchemaError, import_extra

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_VERSIONS = ("v2.1", "v3.0")

#: A row of a table in ``meta/``.
_Row = dict[str, Any]


class LeRobotInfo(TypedDict, total=False):
    """Contents of ``meta/info.json`` that this reader uses."""

    codebase_version: str
    fps: float
    robot_type: str | None
    features: dict[str, FeatureInfo]
    total_episodes: int
    total_frames: int
    chunks_size: int
    data_path: str
    video_path: str


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
        read = _episodes_v21 if info["codebase_version"] == "v2.1" else _episodes_v30
        features = {
            name: _read_feature(name, value) for name, value in info["features"].items()
        }
        _check_features(root, features)
        features = select_features(features, selection)
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
    info: LeRobotInfo = read_json(OWNER, path)
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise SchemaError(
            f"{OWNER}: expected codebase_version of {_VERSIONS} in {str(path)!r}, got "
            f"{version!r}. Convert older datasets with LeRobot's scripts."
        )
    return info


def _read_feature(name: str, value: FeatureInfo) -> Feature:
    dtype, names = value["dtype"], _flat_names(value.get("names"))
    known = (*NUMBER_DTYPES, *IMAGE_DTYPES, *TEXT_DTYPES)
    if dtype not in known:
        raise SchemaError(
            f"{OWNER}: expected a dtype of {known} at feature {name!r}, got {dtype!r}."
        )
    shape = tuple(int(size) for size in value.get("shape") or (1,))
    details = {**(value.get("info") or {}), **(value.get("video_info") or {})}
    is_depth = details.get("is_depth_map") or details.get("video.is_depth_map")
    return Feature(name, dtype, shape, names, is_depth=bool(is_depth))


def _flat_names(
    names: list[str] | dict[str, object] | None,
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


def _check_episodes(
    root: Path, info: LeRobotInfo, episodes: tuple[Episode, ...]
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


def _episodes_v21(root: Path, info: LeRobotInfo, videos: list[str]) -> _Contents:
    rows = read_json_lines(root / "meta" / "episodes.jsonl")
    tasks = {
        int(row["task_index"]): row["task"]
        for row in read_json_lines(root / "meta" / "tasks.jsonl")
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


def read_json_lines(path: Path) -> list[_Row]:
    """Return the objects of a JSON Lines file.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    _check_is_file(path)
    lines = path.read_text().splitlines()
    return [read_json(OWNER, line) for line in lines if line.strip()]


def _episodes_v30(root: Path, info: LeRobotInfo, videos: list[str]) -> _Contents:
    tasks = {}
    for row in _read_rows(root / "meta" / "tasks.parquet"):
        (text,) = (value for name, value in row.items() if name != "task_index")
        tasks[int(row["task_index"])] = text
    folder = root / "meta" / "episodes"
    files = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not files:
        _check_is_file(folder / "chunk-000" / "file-000.parquet")
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


def _place(row: _Row, prefix: str) -> dict[str, int]:
    return {
        name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")
    }


def _read_rows(path: Path, columns: list[str] | None = None) -> list[_Row]:
    table = open_parquet(path).read(columns)
    missing = sorted(set(columns or ()) - set(table.column_names))
    if missing:
        raise SchemaError(f"{OWNER}: expected columns {missing} in {str(path)!r}.")
    return table.to_pylist()


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file and check that its writer was closed.

    Raises:
        FileNotFoundError: the file does not exist.
        SchemaError: the file is unfinished.
    """
    parquet = import_extra("pyarrow.parquet", "datasets", OWNER)
    arrow = import_extra("pyarrow", "datasets", OWNER)
    _check_is_file(path)
    try:
        return parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise SchemaError(
            f"{OWNER}: expected a finished parquet file at {str(path)!r}, got "
            f"{error}. The recording was not finished: finish it with "
            "`dataset.finalize()`, or fetch the dataset again."
        ) from error


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{OWNER}: expected {str(path)!r}, got nothing. The recording was not "
            "finished (LeRobot writes this file in `dataset.finalize()`), or the "
            "download was not."
        )
