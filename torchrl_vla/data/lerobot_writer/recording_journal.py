"""Journal of the finished episodes of an unfinished recording."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
from tensordict import NestedKey

from torchrl_vla._internal.durable_files import (
    commit_folder,
    remove,
    write_json,
    write_text,
)
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import WRITE_AGAIN, read_json
from torchrl_vla._internal.safe_paths import path_below
from torchrl_vla.data.lerobot.lerobot_feature import FeatureInfo
from torchrl_vla.data.lerobot.table_reader import TableFile
from torchrl_vla.data.lerobot_writer.episode_stats import ImageHistogram
from torchrl_vla.data.lerobot_writer.folder_lock import FolderLock
from torchrl_vla.data.lerobot_writer.frame_schema import OWNER, FrameSchema
from torchrl_vla.data.lerobot_writer.parquet_tables import parquet
from torchrl_vla.data.lerobot_writer.video_encoder import VideoEncoding
from torchrl_vla.schema import RobotDatasetMetadata, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa

RECORDING, NOTE, INFO = "recording", "UNFINISHED.txt", "meta/info.json"
#: Folders of a LeRobot dataset.
PARTS = ("data", "videos", "meta")

_SETTINGS, _PARTIAL, _FRAMES, _EPISODE = (
    "settings.json",
    "partial",
    "frames.parquet",
    "episode.json",
)
_REMOVE = "Remove this episode's folder and rename the later ones; the rest is whole."
_TEXT = """\
This folder is an unfinished recording of a LeRobot dataset, by torchrl_vla.

No program can read it yet. Its finished episodes are in 'recording/'. To assemble them
into a dataset:

    from torchrl_vla.data import LeRobotWriter
    LeRobotWriter.resume(FOLDER).close()

or continue recording with LeRobotWriter.resume(FOLDER). To discard it, delete the
folder.
"""


class _StoredSettings(TypedDict):
    metadata: RobotDatasetMetadata
    fps: int
    encoding: VideoEncoding | None
    extra_keys: list[str | tuple[str, ...]]
    data_file_size_mb: float
    video_file_size_mb: float


class _StoredEpisode(TypedDict):
    length: int
    features: dict[str, FeatureInfo]
    pixel_counts: dict[str, list[list[int]]]


@dataclass(frozen=True)
class RecordingSettings:
    """Settings of a recording.

    Args:
        metadata: of the robot.
        fps: frames per second.
        encoding: of videos; None = PNG images in the tables.
        extra_keys: further entries to record.
        data_file_size_mb: maximum size of a file in ``data/``.
        video_file_size_mb: maximum size of a file in ``videos/``.
    """

    metadata: RobotDatasetMetadata
    fps: int
    encoding: VideoEncoding | None
    extra_keys: tuple[NestedKey, ...]
    data_file_size_mb: float
    video_file_size_mb: float

    @property
    def image_dtype(self) -> Literal["image", "video"]:
        """LeRobot's dtype of image features."""
        return "image" if self.encoding is None else "video"

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return {
            "metadata": json.loads(self.metadata.to_json()),
            "fps": self.fps,
            "encoding": None if self.encoding is None else asdict(self.encoding),
            "extra_keys": self.extra_keys,
            "data_file_size_mb": self.data_file_size_mb,
            "video_file_size_mb": self.video_file_size_mb,
        }

    @classmethod
    def from_file(cls, path: Path) -> RecordingSettings:
        """Read a file with :meth:`to_json`'s output.

        Raises:
            SchemaError: it is damaged.
        """
        values = read_json(OWNER, path, _StoredSettings)
        if values["fps"] < 1:
            raise Origin(OWNER, repr(str(path)), WRITE_AGAIN).refuse(
                "a positive number", values["fps"], "fps"
            )
        return cls(
            metadata=values["metadata"],
            fps=values["fps"],
            encoding=values["encoding"],
            extra_keys=tuple(values["extra_keys"]),
            data_file_size_mb=values["data_file_size_mb"],
            video_file_size_mb=values["video_file_size_mb"],
        )


class RecordedEpisode(NamedTuple):
    """One finished episode.

    Args:
        folder: of its files.
        length: number of frames.
        histograms: of each camera.
    """

    folder: Path
    length: int
    histograms: dict[str, ImageHistogram]

    @property
    def table_path(self) -> Path:
        """File of its numbers and PNG images."""
        return self.folder / _FRAMES

    def read_table(self) -> pa.Table:
        """Read the file of its numbers and PNG images.

        Raises:
            SchemaError: it is damaged, or has another number of rows.
        """
        file = TableFile.from_path(OWNER, self.table_path, _REMOVE)
        table = file.read()
        if len(table) != self.length:
            raise file.origin.refuse(f"{self.length} rows", len(table))
        return table

    def video_path(self, name: str) -> Path:
        """File of the video of one camera."""
        origin = Origin(OWNER, repr(str(self.folder)), "Choose another name.")
        return path_below(origin, self.folder, f"{name}.mp4", "a camera")


class Journal:
    """Finished episodes on disk until the dataset is assembled.

    An episode is written to a temporary folder, which is renamed when all its files are
    on the disk: each episode is complete or absent, even after a crash.

    Create one with :meth:`create` or :meth:`open`.
    """

    def __init__(
        self, folder: Path, settings: RecordingSettings, lock: FolderLock
    ) -> None:
        self.folder, self.settings = folder, settings
        self.schema: FrameSchema | None = None
        self.episodes: list[RecordedEpisode] = []
        self._root, self._lock = folder / RECORDING, lock

    @classmethod
    def create(cls, folder: Path, settings: RecordingSettings) -> Journal:
        """Start a recording in a new or empty folder.

        Raises:
            FileExistsError: the folder has contents.
        """
        _check_is_free(folder)
        root = folder / RECORDING
        folder.mkdir(parents=True, exist_ok=True)
        root.mkdir()  # fails for the second of two concurrent writers
        lock = FolderLock(root)
        write_text(folder / NOTE, _TEXT)
        write_json(root / _SETTINGS, settings.to_json())
        return cls(folder, settings, lock)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an unfinished recording, and drop its unfinished episode.

        Raises:
            FileNotFoundError: there is no recording.
            FileExistsError: the dataset is finished.
            ExecutionError: another writer holds the lock.
        """
        root = folder / RECORDING
        if not (root / _SETTINGS).is_file():
            found = "nothing"
            if folder.is_dir():
                found = str(sorted(path.name for path in folder.iterdir()))
            raise FileNotFoundError(
                f"{OWNER}: expected an unfinished recording, with "
                f"'{RECORDING}/{_SETTINGS}', at {str(folder)!r}, got {found}. Start "
                "one with LeRobotWriter(folder, metadata=...)."
            )
        lock = FolderLock(root)
        if (folder / INFO).is_file():  # the process ended during the cleanup
            _clear(folder)
            lock.release()
            raise FileExistsError(
                f"{OWNER}: expected an unfinished recording at {str(folder)!r}, got a "
                "finished dataset. Open it with LeRobotDemonstrations."
            )
        try:
            settings = RecordingSettings.from_file(root / _SETTINGS)
            journal = cls(folder, settings, lock)
            journal._read_episodes()
        except (SchemaError, FileNotFoundError):
            lock.release()
            raise
        remove(journal.partial)
        return journal

    def _read_episodes(self) -> None:
        for index, path in enumerate(sorted(self._root.glob("episode-*"))):
            if path.name != _episode_name(index):
                raise SchemaError(
                    f"{OWNER}: expected {_episode_name(index)!r} in "
                    f"{str(self._root)!r}, got {path.name!r}. An episode was removed: "
                    "restore it, or rename the later ones."
                )
            values = read_json(OWNER, path / _EPISODE, _StoredEpisode, remedy=_REMOVE)
            self.schema = FrameSchema.from_info(values["features"])
            origin = Origin(OWNER, repr(str(path / _EPISODE)), _REMOVE)
            with origin.reading("256 counts of three channels", "pixel_counts"):
                histograms = {
                    name: ImageHistogram(
                        values["length"], np.array(counts, np.int64).reshape(3, 256)
                    )
                    for name, counts in values["pixel_counts"].items()
                }
            cameras = {feature.name for feature in self.schema.images}
            if set(histograms) != cameras:
                raise origin.refuse(
                    f"{sorted(cameras)}", sorted(histograms), "pixel_counts"
                )
            self.episodes.append(RecordedEpisode(path, values["length"], histograms))

    @property
    def partial(self) -> Path:
        """Folder of the episode that is being recorded."""
        return self._root / _PARTIAL

    def commit(
        self,
        table: pa.Table,
        schema: FrameSchema,
        histograms: Mapping[str, ImageHistogram],
    ) -> None:
        """Add the episode in :attr:`partial` to the finished episodes."""
        self.partial.mkdir(exist_ok=True)
        parquet().write_table(table, self.partial / _FRAMES)
        values = {
            "length": len(table),
            "features": schema.to_info(),
            "pixel_counts": {k: v.counts.tolist() for k, v in histograms.items()},
        }
        write_json(self.partial / _EPISODE, values)
        path = self._root / _episode_name(len(self.episodes))
        commit_folder(self.partial, path)
        self.schema = schema
        self.episodes.append(RecordedEpisode(path, len(table), dict(histograms)))

    def finish(self) -> None:
        """Remove the journal after the dataset is assembled."""
        _clear(self.folder)
        self._lock.release()

    def release(self) -> None:
        """Release the recording for another writer to resume."""
        remove(self.partial)
        self._lock.release()


def _episode_name(index: int) -> str:
    return f"episode-{index:06d}"


def _clear(folder: Path) -> None:
    remove(folder / RECORDING)
    remove(folder / NOTE)


def _check_is_free(folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if (folder / RECORDING).is_dir():
        advice = "Continue with LeRobotWriter.resume(folder), or delete it."
        found = "an unfinished recording"
    else:
        advice = "Choose another folder."
        found = str(sorted(path.name for path in folder.iterdir()))
    raise FileExistsError(
        f"{OWNER}: expected nothing at {str(folder)!r}, got {found}. {advice}"
    )
