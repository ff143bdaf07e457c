"""Encoder of a camera's video per episode, and lossless concatenation of videos."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot_writer.frame_schema import OWNER
from torchrl_vla.schema import SchemaError, import_extra

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video import VideoStream

#: Some builds of SVT-AV1 terminate the process on smaller images.
_SMALLEST_AV1 = 32


@dataclass(frozen=True)
class VideoEncoding:
    """Video codec and its options. The default is LeRobot's.

    Every second image is a key frame, because random access decodes from the previous
    key frame.

    Args:
        codec: an encoder of FFmpeg.
        pixel_format: of the encoded video.
        options: of the encoder, by FFmpeg's names.

    Examples:
        >>> VideoEncoding().codec, VideoEncoding.lossless().pixel_format
        ('libsvtav1', 'rgb24')
    """

    codec: str = "libsvtav1"
    pixel_format: str = "yuv420p"
    options: Mapping[str, str] = field(
        default_factory=lambda: {
            "g": "2",
            "crf": "30",
            "preset": "12",
            "svtav1-params": "fast-decode=0",
        }
    )

    @classmethod
    def h264(cls, crf: int = 23) -> VideoEncoding:
        """Return H.264: faster to encode, decodable everywhere, larger files."""
        return cls("libx264", "yuv420p", {"g": "2", "crf": str(crf)})

    @classmethod
    def lossless(cls) -> VideoEncoding:
        """Return lossless H.264 in RGB: decoded images equal the originals."""
        return cls("libx264rgb", "rgb24", {"g": "2", "qp": "0", "preset": "veryfast"})


class EpisodeVideo:
    """Encoder of the images of one camera in one episode, one at a time.

    The presentation time of image ``k`` is exactly ``k / fps``.

    Args:
        path: of the mp4 file.

    Keyword Args:
        fps: images per second.
        encoding: codec and options.

    Raises:
        SchemaError: the codec does not support images of this size.
    """

    def __init__(self, path: Path, *, fps: int, encoding: VideoEncoding) -> None:
        self._av = import_extra("av", "datasets", OWNER)
        self._fps, self._encoding = fps, encoding
        self._path, self._n_frames = path, 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None

    def add(self, image: np.ndarray) -> None:
        """Append one RGB image, uint8 ``[h, w, 3]``."""
        container, stream = self._open(*image.shape[:2])
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self._n_frames, Fraction(1, self._fps)
        try:
            container.mux(stream.encode(frame))
        except self._av.FFmpegError as error:
            raise self._refusal(image.shape[:2], error) from error
        self._n_frames += 1

    def _open(self, height: int, width: int) -> tuple[OutputContainer, VideoStream]:
        if self._container is not None and self._stream is not None:
            return self._container, self._stream
        encoding = self._encoding
        if encoding.codec == "libsvtav1" and min(height, width) < _SMALLEST_AV1:
            reason = f"it encodes {_SMALLEST_AV1} x {_SMALLEST_AV1} and larger"
            raise self._refusal((height, width), reason)
        os.environ.setdefault("SVT_LOG", "1")  # avoids ten lines per episode
        container = self._av.open(str(self._path), "w")
        stream = container.add_stream(
            encoding.codec, self._fps, options=dict(encoding.options)
        )
        stream.pix_fmt = encoding.pixel_format
        stream.height, stream.width = height, width
        stream.time_base = Fraction(1, self._fps)
        self._container, self._stream = container, stream
        return container, stream

    def _refusal(self, size: Sequence[int], reason: object) -> SchemaError:
        return SchemaError(
            f"{OWNER}: expected images that {self._encoding.codec!r} encodes as "
            f"{self._encoding.pixel_format!r}, got {size[0]} x {size[1]} ({reason}). "
            "Pass images='png', or e.g. images=VideoEncoding.lossless()."
        )

    def close(self) -> None:
        """Encode pending images and finish the file."""
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self.discard()

    def discard(self) -> None:
        """Close the file without its pending images."""
        if self._container is not None:
            self._container.close()
            self._container = None


@dataclass(frozen=True)
class VideoFacts:
    """Codec parameters of a video file.

    Files with equal parameters can be concatenated without encoding them again.
    """

    codec: str
    pixel_format: str
    height: int
    width: int
    header: bytes

    @classmethod
    def from_file(cls, path: Path) -> VideoFacts:
        """Read the parameters from the start of a file.

        Raises:
            SchemaError: it is damaged.
        """
        av = import_extra("av", "datasets", OWNER)
        origin = Origin.of_file(OWNER, path, "Record the episode again.")
        with origin.reading("a finished video"), av.open(str(path)) as container:
            stream = container.streams.video[0]
            return cls(
                stream.codec.canonical_name,
                stream.codec_context.pix_fmt,
                stream.height,
                stream.width,
                bytes(stream.codec_context.extradata or b""),
            )

    def info(self, fps: int, encoding: VideoEncoding) -> dict[str, object]:
        """Return the details of a video feature for ``info.json``."""
        numbers = {
            f"video.{name}": int(value)
            for name, value in encoding.options.items()
            if name in ("g", "crf", "preset") and value.isdigit()
        }
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": self.codec,
            "video.pix_fmt": self.pixel_format,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
            **numbers,
            "is_depth_map": False,
        }


def concatenate(parts: Sequence[tuple[Path, int]], path: Path, *, fps: int) -> None:
    """Concatenate videos by copying their packets, without encoding.

    The presentation time of image ``k`` of the whole is exactly ``k / fps``.

    Args:
        parts: files with equal :class:`VideoFacts`, and their numbers of images.
        path: of the new file.

    Keyword Args:
        fps: images per second of all files.
    """
    av = import_extra("av", "datasets", OWNER)
    delay = max(_delay(part, fps) for part, _ in parts)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        target, n_before, n_packets = None, 0, 0
        for part, n_frames in parts:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                tick = _ticks_per_frame(part, stream, fps)
                if target is None:
                    target = output.add_stream_from_template(stream, opaque=True)
                    target.time_base = stream.time_base
                for packet in source.demux(stream):
                    if packet.dts is None:  # end of the stream
                        continue
                    packet.pts += n_before * tick
                    # Decoding order; a short part can have a smaller delay.
                    packet.dts = (n_packets - delay) * tick
                    packet.stream = target
                    output.mux(packet)
                    n_packets += 1
            n_before += n_frames
            if n_packets != n_before:
                raise SchemaError(
                    f"{OWNER}: expected {n_frames} images in {str(part)!r}, got "
                    f"{n_packets - n_before + n_frames}."
                )


def _ticks_per_frame(path: Path, stream: VideoStream, fps: int) -> int:
    ticks = 1 / (fps * Fraction(stream.time_base or 1))
    if ticks.denominator != 1:
        raise SchemaError(
            f"{OWNER}: expected a video of {fps} images a second at {str(path)!r}, "
            f"got a time base of {stream.time_base} s."
        )
    return int(ticks)


def _delay(path: Path, fps: int) -> int:
    """Return the decoding delay in frames: how far decoding precedes presentation."""
    av = import_extra("av", "datasets", OWNER)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        first = next(container.demux(stream))
        return -first.dts // _ticks_per_frame(path, stream, fps)
