"""Decoders and time index of the frames of mp4 videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.schema import SchemaError, import_extra

if TYPE_CHECKING:
    from av import VideoFrame
    from torchcodec.decoders import VideoDecoder

_CALLER = "LeRobotDemonstrations"
_REMEDY = "The recording or the download was not finished: fetch the dataset again."
_MOST_PIXELS = 1 << 26


@cache
def torchcodec_loads() -> bool:
    """Return True if torchcodec is installed and finds FFmpeg's libraries."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


class VideoIndex(NamedTuple):
    """Presentation times and key frames of one file, in presentation order.

    Args:
        pts: int64 ``[N]``, presentation times in units of ``time_base_s``.
        is_key: bool ``[N]``, True = decoding can start at this frame.
        time_base_s: seconds per unit of ``pts``.
    """

    pts: np.ndarray
    is_key: np.ndarray
    time_base_s: float

    @classmethod
    def from_file(cls, path: Path) -> VideoIndex:
        """Read the times of all frames without decoding them.

        Raises:
            SchemaError: the file is not a video, or is truncated.
        """
        av = import_extra("av", "datasets", _CALLER)
        origin = Origin.of_file(_CALLER, path, _REMEDY)
        with origin.reading("a finished video"), av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.pts is not None and not packet.is_discard
            ]
            time_base_s = float(stream.time_base or 0)
            height, width = stream.height, stream.width
        if not packets or time_base_s <= 0:
            raise origin.refuse("a finished video", "no frames")
        if not 0 < height * width <= _MOST_PIXELS:
            got = f"{height} x {width}"
            raise origin.refuse(f"images of up to {_MOST_PIXELS} pixels", got)
        pts, is_key = zip(*sorted(packets), strict=True)
        return cls(np.array(pts, np.int64), np.array(is_key, bool), time_base_s)

    @property
    def times_s(self) -> np.ndarray:
        """Presentation time of each frame in seconds, float64 ``[N]``."""
        return self.pts * self.time_base_s

    def find(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of the nearest frame and its distance in seconds."""
        there = self.times_s
        after = np.searchsorted(there, times_s).clip(1, len(there) - 1)
        before_is_nearer = times_s - there[after - 1] <= there[after] - times_s
        number = np.where(before_is_nearer, after - 1, after).clip(0)
        return number, np.abs(there[number] - times_s)


class Video(Protocol):
    """Open video file that decodes frames by number."""

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield RGB uint8 ``[h, w, 3]`` of each frame; ``numbers`` ascend."""

    def close(self) -> None:
        """Close the file."""


class PyAVVideo:
    """Decoder of one open file with PyAV.

    It decodes forward from its position if that lies after the last key frame before
    the requested frame, and seeks to that key frame otherwise.

    Args:
        path: the file.
        index: of its frames.
    """

    def __init__(self, path: Path, index: VideoIndex) -> None:
        av = import_extra("av", "datasets", _CALLER)
        self._path, self._index = path, index
        self._keys = index.is_key.nonzero()[0]
        with Origin.of_file(_CALLER, path, _REMEDY).reading("a finished video"):
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # each seek decodes a frame or two
        self._stream.thread_count = 1
        # One for all frames: creating one takes half the time of a small frame.
        self._to_rgb = import_extra(
            "av.video.reformatter", "datasets", _CALLER
        ).VideoReformatter()
        self._frames: Iterator[VideoFrame] = iter(())
        self._next: int | None = None

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield RGB uint8 ``[h, w, 3]`` of each frame; ``numbers`` ascend."""
        origin = Origin(_CALLER, repr(str(self._path)), _REMEDY)
        for number in numbers:
            self._next, start = None, self._next  # stays None if the file is damaged
            with origin.reading(f"frame {number}"):
                found = self._search(number, start)
                if found is None:
                    raise origin.refuse(f"frame {number}", "no image for it")
                frame = self._to_rgb.reformat(found, format="rgb24")
                (plane,) = frame.planes
                lines = np.frombuffer(plane, np.uint8)
                lines = lines.reshape(frame.height, plane.line_size)
            yield lines[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)

    def _search(self, number: int, start: int | None) -> VideoFrame | None:
        wanted = self._index.pts[number]
        place = int(np.searchsorted(self._keys, number, "right")) - 1
        if start is None or not self._keys[max(place, 0)] <= start <= number:
            self._jump(place)
        while place >= 0:
            for frame in self._frames:
                if frame.pts is None:
                    continue
                self._next = int(np.searchsorted(self._index.pts, frame.pts, "right"))
                if frame.pts == wanted:
                    return frame
                if frame.pts > wanted:  # the file's own index seeked past it
                    break
            place -= 1
            self._jump(place)
        return None

    def _jump(self, place: int) -> None:
        if place < 0:
            self._next = None
            return
        number = int(self._keys[place])
        pts = int(self._index.pts[number])
        self._container.seek(pts, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._next = number

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class TorchcodecVideo:
    """Decoder of one open file with torchcodec.

    Args:
        path: the file.
        index: of its frames.
    """

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self._path, self._index = path, index
        self._exact = False
        self._decoder = self._open("approximate")

    def _open(self, seek_mode: str) -> VideoDecoder:
        decoders = import_extra("torchcodec.decoders", "lerobot", _CALLER)
        with Origin.of_file(_CALLER, self._path, _REMEDY).reading("a finished video"):
            return decoders.VideoDecoder(str(self._path), seek_mode=seek_mode)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield RGB uint8 ``[h, w, 3]`` of each frame; ``numbers`` ascend."""
        frames = self._decode(numbers)
        yield from frames.permute(0, 2, 3, 1).numpy()

    def _decode(self, numbers: Sequence[int]) -> Tensor:
        origin = Origin(_CALLER, repr(str(self._path)), _REMEDY)
        with origin.reading(f"frames {list(numbers)}"):
            batch = self._decoder.get_frames_at(list(numbers))
        wanted = torch.from_numpy(self._index.times_s[list(numbers)])
        late = (batch.pts_seconds - wanted).abs().max()
        if late <= self._index.time_base_s:
            return batch.data
        if self._exact:
            raise SchemaError(
                f"{_CALLER}: expected frames {list(numbers)} of {str(self._path)!r}, "
                f"got images {late:.6f} s away from torchcodec. Pass decoder='pyav'."
            )
        # The frame rate varies: look frame numbers up instead of computing them.
        self._exact = True
        self._decoder = self._open("exact")
        return self._decode(numbers)

    def close(self) -> None:
        """Release the decoder and its file."""
        del self._decoder


DECODERS: dict[str, Callable[[Path, VideoIndex], Video]] = {
    "pyav": PyAVVideo,
    "torchcodec": TorchcodecVideo,
}


def decoder_name(decoder: str | None) -> str:
    """Return the name of the decoder: torchcodec if it loads, else PyAV.

    Raises:
        ValueError: the name is unknown, or torchcodec does not load.
    """
    if decoder is None:
        return "torchcodec" if torchcodec_loads() else "pyav"
    if decoder not in DECODERS:
        raise ValueError(
            f"{_CALLER}: expected a decoder of {sorted(DECODERS)} or None, got "
            f"{decoder!r}."
        )
    if decoder == "torchcodec" and not torchcodec_loads():
        raise ValueError(
            f"{_CALLER}: expected torchcodec to load, got an error. Install it with "
            "FFmpeg's shared libraries (`apt-get install ffmpeg`), or pass "
            "decoder='pyav'."
        )
    return decoder


def decode_video(
    path: Path | str, times_s: Sequence[float], *, decoder: str | None = None
) -> Tensor:
    """Decode the video frames nearest to some times.

    Args:
        path: a video file.
        times_s: seconds from its start, in any order.

    Keyword Args:
        decoder: ``"torchcodec"`` or ``"pyav"``; None = torchcodec if it loads.

    Returns:
        RGB uint8 ``[N, 3, h, w]``, in channels-last memory.
    """
    path = Path(path)
    index = VideoIndex.from_file(path)
    numbers, _ = index.find(np.asarray(times_s, dtype=np.float64))
    unique, where = np.unique(numbers, return_inverse=True)
    video = DECODERS[decoder_name(decoder)](path, index)
    images = np.stack(list(video.read(unique.tolist())))[where]
    video.close()
    return torch.from_numpy(images).permute(0, 3, 1, 2)
