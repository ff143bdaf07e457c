"""Buffer of the episode that is being recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla.data.lerobot_writer.episode_stats import ImageHistogram
from torchrl_vla.data.lerobot_writer.frame_schema import FrameSchema
from torchrl_vla.data.lerobot_writer.parquet_tables import (
    TASK_COLUMN,
    arrow,
    column,
    data_schema,
    encode_png,
)
from torchrl_vla.data.lerobot_writer.video_encoder import EpisodeVideo, VideoEncoding

if TYPE_CHECKING:
    import pyarrow as pa


class EpisodeBuffer:
    """Steps of one episode; images are encoded immediately.

    Args:
        schema: of the steps.
        folder: for videos.

    Keyword Args:
        fps: frames per second.
        encoding: of videos; None = PNG images, in memory until :meth:`finish`.
    """

    def __init__(
        self,
        schema: FrameSchema,
        folder: Path,
        *,
        fps: int,
        encoding: VideoEncoding | None,
    ) -> None:
        self.schema = schema
        self.histograms = {f.name: ImageHistogram() for f in schema.images}
        self._tasks: list[str] = []
        self._numbers: dict[str, list[np.ndarray]] = {
            f.name: [] for f in schema.numbers
        }
        self._images: dict[str, list[bytes]] = {}
        self._videos: dict[str, EpisodeVideo] = {}
        for feature in schema.images:
            if encoding is None:
                self._images[feature.name] = []
                continue
            folder.mkdir(exist_ok=True)
            path = folder / f"{feature.name}.mp4"
            video = EpisodeVideo(path, fps=fps, encoding=encoding)
            self._videos[feature.name] = video

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, columns: Mapping[str, np.ndarray], tasks: Sequence[str]) -> None:
        """Append steps, with the values of each feature ``[T, ...]``."""
        for name, histogram in self.histograms.items():
            for image in columns[name]:
                if name in self._videos:
                    self._videos[name].add(image)
                else:
                    self._images[name].append(encode_png(image))
                histogram.add(image)
        for name, parts in self._numbers.items():
            parts.append(columns[name].copy())  # the caller may reuse its buffer
        self._tasks += tasks

    def finish(self) -> pa.Table:
        """Finish the videos, and return the table of other columns and tasks."""
        for video in self._videos.values():
            video.close()
        columns = [
            column(feature, self._values(feature.name))
            for feature in self.schema.features
            if feature.dtype != "video"
        ]
        string = arrow().string()
        schema = data_schema(self.schema.features)
        tasks = arrow().field(TASK_COLUMN, string)
        texts = arrow().array(self._tasks, string)
        return arrow().table([*columns, texts], schema=schema.append(tasks))

    def _values(self, name: str) -> np.ndarray | list[bytes]:
        if name in self._images:
            return self._images[name]
        return np.concatenate(self._numbers[name])

    def discard(self) -> None:
        """Close the videos without finishing them."""
        for video in self._videos.values():
            video.discard()
