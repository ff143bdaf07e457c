"""The finished episodes of a recording that is not finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensordict import NestedKey

from torchrl_vla._internal.durable_files import (
    OWNER,
    commit_folder,
    remove,
    write_json,
    write_text,
)
from torchrl_vla.data.lerobot_writer.episode_stats import ImageHistogram
from torchrl_vla.data.lerobot_writer.folder_lock import FolderLock
from torchrl_vla.data.lerobot_writer.frame_schema import FrameSchema
from torchrl_vla.data.lerobot_writer.parquet_tables import parquet
from torchrl_vla.data.lerobot_writer.video_encoder import VideoEncoding
from torchrl_vla.schema import RobotDatasetMetadata, SchemaError

RECORDING, NOTE, INFO = "recording", "UNFINISHED.txt", "meta/info.json"
#: What a LeRobot dataset consists of.
PARTS = ("data", "videos", "meta")

_SETTINGS, _PARTIAL, _FRAMES, _EPISODE = (
    "settings.json",
    "partial",
    "frames.parquet",
    "episode.json",
)
_TEXT = """\
This folder is an unfinished recording of a LeRobot dataset, by torchrl_vla.

No program can read it yet. The episodes that were finished are safe in 'recording/'.
To turn them into a dataset:

    from torchrl_vla.data import LeRobotWriter
    LeRobotWriter.resume(FOLDER).close()

or go on recording with LeRobotWriter.resume(FOLDER). To give it up, delete the folder.
"""


@dataclass(frozen=True)
class RecordingSettings:
    """What a recording is made with, from its first step to its last.

    Args:
        metadata: of the robot.
        fps: frames per second.
        encoding: of videos; None = images are PNG in the tables.
        extra_keys: entries to record beside the usual ones.
        data_file_size_mb: of a file in ``data/``.
        video_file_size_mb: of a file in ``videos/``.
    """

    metadata: RobotDatasetMetadata
    fps: int
    encoding: VideoEncoding | None
    extra_keys: tuple[NestedKey, ...]
    data_file_size_mb: float
    video_file_size_mb: float

    @property
    def image_dtype(self) -> str:
        """LeRobot's word for the images' features."""
        return "image" if self.encoding is None else "video"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        encoding = self.encoding
        return {
            "metadata": json.loads(self.metadata.to_json()),
            "fps": self.fps,
            "encoding": None if encoding is None else asdict(encoding),
            "extra_keys": [
                list(k) if isinstance(k, tuple) else k for k in self.extra_keys
            ],
            "data_file_size_mb": self.data_file_size_mb,
            "video_file_size_mb": self.video_file_size_mb,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RecordingSettings:
        """Read what :meth:`to_json` wrote."""
        encoding, keys = values["encoding"], values["extra_keys"]
        return cls(
            **{
                **values,
                "metadata": RobotDatasetMetadata.from_json(
                    json.dumps(values["metadata"])
                ),
                "encoding": None if encoding is None else VideoEncoding(**encoding),
                "extra_keys": tuple(
                    tuple(key) if isinstance(key, list) else key for key in keys
                ),
            }
        )


class RecordedEpisode(NamedTuple):
    """One finished episode.

    Args:
        folder: of its files.
        length: frames.
        histograms: of each camera.
    """

    folder: Path
    length: int
    histograms: dict[str, ImageHistogram]

    @property
    def table_path(self) -> Path:
        """The table of its numbers and images."""
        return self.folder / _FRAMES

    def video_path(self, name: str) -> Path:
        """The video of one camera."""
        return self.folder / f"{name}.mp4"


class Journal:
    """Keep finished episodes on the disk until the dataset is put together.

    An episode is written into a folder of another name, which is renamed when all of
    it is on the disk. So each is there whole or not at all, whenever the process ends.

    Made by :meth:`create` and :meth:`open`.

    Args:
        folder: of the dataset.
        settings: of the recording.
        lock: holds the folder.
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
        """Begin a recording in a folder that is not there or empty.

        Raises:
            FileExistsError: it has contents.
        """
        _check_is_free(folder)
        root = folder / RECORDING
        folder.mkdir(parents=True, exist_ok=True)
        root.mkdir()  # of two that begin at once, one fails
        lock = FolderLock(root)
        write_text(folder / NOTE, _TEXT)
        write_json(root / _SETTINGS, settings.to_json())
        return cls(folder, settings, lock)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an unfinished recording, and drop the episode that was not finished.

        Raises:
            FileNotFoundError: there is none.
            ExecutionError: another writer is recording into it.
        """
        root = folder / RECORDING
        if not (root / _SETTINGS).is_file():
            there = "nothing"
            if folder.is_dir():
                there = str(sorted(path.name for path in folder.iterdir()))
            raise FileNotFoundError(
                f"{OWNER}: expected an unfinished recording, with "
                f"'{RECORDING}/{_SETTINGS}', at {str(folder)!r}, got {there}. Begin "
                "one with LeRobotWriter(folder, metadata=...)."
            )
        lock = FolderLock(root)
        if (folder / INFO).is_file():  # ended while it was clearing up
            _clear(folder)
            lock.release()
            raise FileExistsError(
                f"{OWNER}: expected an unfinished recording at {str(folder)!r}, got a "
                "finished dataset. Open it with LeRobotDemonstrations."
            )
        values = json.loads((root / _SETTINGS).read_text(encoding="utf-8"))
        journal = cls(folder, RecordingSettings.from_json(values), lock)
        journal._read_episodes()
        remove(journal.partial)
        return journal

    def _read_episodes(self) -> None:
        for index, path in enumerate(sorted(self._root.glob("episode-*"))):
            if path.name != _episode_name(index):
                raise SchemaError(
                    f"{OWNER}: expected {_episode_name(index)!r} in "
                    f"{str(self._root)!r}, got {path.name!r}. An episode was removed: "
                    "put it back, or rename the ones after it."
                )
            values = json.loads((path / _EPISODE).read_text(encoding="utf-8"))
            self.schema = FrameSchema.from_info(values["features"])
            histograms = {
                name: ImageHistogram(values["length"], np.array(counts, np.int64))
                for name, counts in values["pixel_counts"].items()
            }
            self.episodes.append(RecordedEpisode(path, values["length"], histograms))

    @property
    def partial(self) -> Path:
        """Where the files of the episode that is being recorded go."""
        return self._root / _PARTIAL

    def commit(
        self,
        table: Any,
        schema: FrameSchema,
        histograms: Mapping[str, ImageHistogram],
    ) -> None:
        """Make the episode in :attr:`partial` one of the finished ones."""
        self.partial.mkdir(exist_ok=True)
        parquet().write_table(table, self.partial / _FRAMES)
        values = {
            "length": len(table),
            "features": schema.to_info(),
            "pixel_counts": {k: v.counts.tolist() for k, v in histograms.items()},
        }
        text = json.dumps(values, ensure_ascii=False)
        (self.partial / _EPISODE).write_text(text, encoding="utf-8")
        path = self._root / _episode_name(len(self.episodes))
        commit_folder(self.partial, path)
        self.schema = schema
        self.episodes.append(RecordedEpisode(path, len(table), dict(histograms)))

    def finish(self) -> None:
        """Remove the journal: the dataset is there."""
        _clear(self.folder)
        self._lock.release()

    def release(self) -> None:
        """Leave the recording as it is, for another writer to go on with."""
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
        advice = "Go on with LeRobotWriter.resume(folder), or delete it."
        found = "an unfinished recording"
    else:
        advice = "Choose another folder."
        found = str(sorted(path.name for path in folder.iterdir()))
    raise FileExistsError(
        f"{OWNER}: expected nothing at {str(folder)!r}, got {found}. {advice}"
    )
