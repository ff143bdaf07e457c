"""Batched decoding of camera images by row of the dataset."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot.encoded_picture import check_pixels, decode_picture
from torchrl_vla.data.lerobot.folder_layout import OWNER
from torchrl_vla.data.lerobot.video_decoder import DECODERS, Video, VideoIndex

_OPEN_VIDEOS = 64
# Smaller images decode so fast that threads only wait for Python's lock.
_PIXELS_WORTH_A_THREAD = 180 * 180
_left_by_parent: list[object] = []


class Camera(Protocol):
    """Encoded images of one camera."""

    name: str
    shape: tuple[int, int, int]

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Return the order in which to decode rows."""

    def decode(
        self, rows: np.ndarray, places: np.ndarray, out: np.ndarray, videos: OpenVideos
    ) -> None:
        """Write the image of each row, in :meth:`order`, to its place in ``out``."""


class OpenVideos:
    """Least-recently-used cache of the open videos of one thread.

    Args:
        decoder: ``"pyav"`` or ``"torchcodec"``.
        limit: maximum number of open videos.
    """

    def __init__(self, decoder: str, limit: int) -> None:
        self._decoder, self._limit = decoder, limit
        self._open: OrderedDict[Path, Video] = OrderedDict()

    def get(self, path: Path, index: VideoIndex) -> Video:
        """Return the open video of a file; open it if necessary."""
        if path not in self._open:
            while len(self._open) >= self._limit:
                self._open.popitem(last=False)[1].close()
            self._open[path] = DECODERS[self._decoder](path, index)
        self._open.move_to_end(path)
        return self._open[path]


class EncodedCamera:
    """PNG or JPEG images of one camera, concatenated in one file.

    Args:
        name: of the camera.
        shape: ``(C, h, w)``.
        folder: written by :class:`ImageWriter`.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], folder: Path) -> None:
        self.name, self.shape, self._folder = name, shape, folder
        self._blob = np.memmap(folder / "bytes.bin", np.uint8, "r")
        self._ends = np.load(folder / "ends.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name, self.shape, self._folder)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Return the order of the images in the file."""
        return np.argsort(rows, kind="stable")

    def decode(
        self, rows: np.ndarray, places: np.ndarray, out: np.ndarray, videos: OpenVideos
    ) -> None:
        """Write the image of each row to its place in ``out``."""
        last, last_place = None, 0
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            if row == last:
                out[place] = out[last_place]
                continue
            data = self._blob[self._ends[row] : self._ends[row + 1]].tobytes()
            place_of = f"row {row} of camera {self.name!r}"
            origin = Origin(OWNER, place_of, "Fetch the dataset again.")
            out[place] = decode_picture(data, self.shape, origin)
            last, last_place = row, place


class VideoCamera:
    """Images of one camera in mp4 files.

    Args:
        name: of the camera.
        shape: ``(C, h, w)``.
        folder: written by :func:`write_videos`.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], folder: Path) -> None:
        self.name, self.shape, self._folder = name, shape, folder
        with np.load(folder / "files.npz") as files:
            ends = files["ends"]
            pieces = [np.split(files[key], ends) for key in ("pts", "is_key")]
            self._indices = [
                VideoIndex(pts, is_key, float(time_base_s))
                for pts, is_key, time_base_s in zip(
                    *pieces, files["time_base_s"], strict=True
                )
            ]
            self._paths = [Path(path) for path in files["paths"]]
        self._file = np.load(folder / "file.npy", mmap_mode="r")
        self._frame = np.load(folder / "frame.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name, self.shape, self._folder)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Return the order by file and, within it, by frame."""
        return np.lexsort((self._frame[rows], self._file[rows]))

    def decode(
        self, rows: np.ndarray, places: np.ndarray, out: np.ndarray, videos: OpenVideos
    ) -> None:
        """Write the image of each row to its place in ``out``."""
        files = self._file[rows]
        starts = np.flatnonzero(np.r_[True, files[1:] != files[:-1]])
        for part in np.split(np.arange(len(rows)), starts[1:]):
            which = int(files[part[0]])
            path = self._paths[which]
            video = videos.get(path, self._indices[which])
            numbers, first = np.unique(self._frame[rows[part]], return_index=True)
            ends = [*first[1:], len(part)]
            images = video.read(numbers.tolist())
            for number, start, end, pixels in zip(
                numbers, first, ends, images, strict=True
            ):
                place_of = f"frame {number} of {str(path)!r}"
                origin = Origin(OWNER, place_of, "Fetch the dataset again.")
                check_pixels(pixels, self.shape, origin)
                for place in places[part[start:end]]:
                    out[place] = pixels


class ImageReader:
    """Multi-threaded reader of the images of all cameras by row.

    Rows are sorted by file and frame and split into contiguous parts, one per thread,
    so that each decoder reads forward. The images do not depend on the number of
    threads: each thread has its own decoders, and an image does not depend on what was
    decoded before it.

    Args:
        cameras: by name.
        decoder: ``"pyav"`` or ``"torchcodec"``.
        num_threads: at most four, one per CPU, by default.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        decoder: str,
        num_threads: int | None = None,
    ) -> None:
        self.cameras, self.decoder = dict(cameras), decoder
        self._num_threads = num_threads or min(4, _cpus())
        self._reset()

    def _reset(self) -> None:
        n = self._num_threads
        limit = max(1, _OPEN_VIDEOS // n)
        self._videos = [OpenVideos(self.decoder, limit) for _ in range(n)]
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return uint8 ``[N, C, h, w]`` of each camera, in channels-last memory."""
        if self._process != os.getpid():
            # A decoder does not survive a fork, and closing it would wait for threads
            # that only the parent has.
            _left_by_parent.append((self._videos, self._pool))
            self._reset()
        out = {}
        with self._lock:
            for name, camera in self.cameras.items():
                c, h, w = camera.shape
                pixels = np.empty((len(rows), h, w, c), np.uint8)
                self._read(camera, rows.numpy(), pixels)
                out[name] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return out

    def _read(self, camera: Camera, rows: np.ndarray, out: np.ndarray) -> None:
        order = camera.order(rows)
        _, h, w = camera.shape
        n = len(self._videos) if h * w >= _PIXELS_WORTH_A_THREAD else 1
        parts = [part for part in np.array_split(order, n) if len(part)]
        if len(parts) == 1:
            camera.decode(rows[order], order, out, self._videos[0])
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(len(self._videos))
        jobs = [
            self._pool.submit(camera.decode, rows[part], part, out, videos)
            for part, videos in zip(parts, self._videos[: len(parts)], strict=True)
        ]
        wait(jobs)  # even if one fails: the others still write to out
        for job in jobs:
            job.result()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.cameras, self.decoder, self._num_threads)


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
