"""Export of episodes as contact sheets (PNG) and videos (PyAV)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla._internal.durable_files import write_bytes, writing_file
from torchrl_vla.rollout import EpisodeStep
from torchrl_vla.schema import import_extra


class Recorder:
    """Keep the images of chosen episodes of an evaluation, by default the first few.

    Args:
        episodes: how many to keep, or the indices of those to keep.
        image: environment to uint8 RGB ``[N, 3, h, w]``, called once a step while
            one of the episodes runs; by default ``env.render()``.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> from torchrl_vla.evaluation import evaluate
        >>> env, recorder = TabletopEnv(2, image_size=16), Recorder(1)
        >>> _ = evaluate(
        ...     env, env.make_expert(), 2, recorder=recorder, progress=False
        ... )
        >>> recorder.videos[0].shape[1:]
        torch.Size([3, 160, 160])
    """

    def __init__(
        self,
        episodes: int | Sequence[int] = 4,
        image: Callable[[EnvBase], Tensor] = lambda env: env.render(),
    ) -> None:
        first = range(episodes) if isinstance(episodes, int) else episodes
        self.indices = tuple(sorted(set(first)))
        self.image = image
        self._frames: dict[int, list[Tensor]] = {}

    def add(self, step: EpisodeStep, env: EnvBase) -> None:
        """Keep an image of each recorded episode that is running."""
        wanted = torch.isin(step.episode.cpu(), torch.tensor(self.indices))
        if not bool(wanted.any()):
            return
        images = self.image(env).cpu()
        for env_index in wanted.nonzero()[:, 0].tolist():
            index = int(step.episode[env_index])
            if step.frame[env_index] == 0:  # maybe again, after an error elsewhere
                self._frames[index] = []
            self._frames.setdefault(index, []).append(images[env_index])

    @property
    def videos(self) -> list[Tensor]:
        """The episodes' images, uint8 ``[T, 3, h, w]`` each, in order."""
        return [torch.stack(self._frames[index]) for index in sorted(self._frames)]


def contact_sheet(videos: Sequence[Tensor], columns: int = 8) -> Tensor:
    """Lay videos out, one per line, as evenly spaced frames with the last one last.

    Args:
        videos: uint8 ``[T, 3, h, w]`` each.
        columns: frames per line; a shorter video repeats its last frame.

    Returns:
        uint8 ``[3, H, W]``, with a frame of two white pixels around each image.

    Raises:
        ValueError: there is no video, or fewer than two columns.
    """
    if not videos or columns < 2:
        raise ValueError(
            "contact_sheet: expected at least one video and columns >= 2, got "
            f"{len(videos)} videos and columns={columns}."
        )
    lines = []
    for video in videos:
        last = len(video) - 1
        index = [min(round(i * last / (columns - 1)), last) for i in range(columns)]
        frames = [
            torch.nn.functional.pad(video[i], (2, 2, 2, 2), value=255) for i in index
        ]
        lines.append(torch.cat(frames, -1))
    return torch.cat(lines, -2)


def write_png(path: Path, image: Tensor) -> Path:
    """Write a uint8 RGB image ``[3, h, w]`` as PNG.

    Raises:
        ValueError: the image has another dtype or shape.
    """
    content = encode_png(image)
    write_bytes(path, lambda file: file.write(content))
    return path


def encode_png(image: Tensor) -> bytes:
    """Return a uint8 RGB image ``[3, h, w]`` as the bytes of a PNG file.

    Raises:
        ValueError: the image has another dtype or shape.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"write_png: expected uint8 [3, h, w], got {image.dtype} "
            f"{tuple(image.shape)}."
        )
    height, width = image.shape[1:]
    pixels = image.permute(1, 2, 0).reshape(height, width * 3)
    # Every line of a PNG begins with the number of its filter; 0 is none.
    lines = torch.nn.functional.pad(pixels, (1, 0)).cpu().numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(lines, 6))
        + _png_chunk(b"IEND", b"")
    )


def write_video(path: Path, video: Tensor, *, rate_hz: float = 10.0) -> Path:
    """Write uint8 frames ``[T, 3, h, w]`` as a video (extra ``video``).

    Args:
        path: ``.mp4`` or another container that FFmpeg knows by its ending.
        video: the frames; height and width must be even.
        rate_hz: frames per second.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: the video has another dtype or shape, or an odd height or width.
    """
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[1] != 3:
        raise ValueError(
            f"write_video: expected uint8 [T, 3, h, w], got {video.dtype} "
            f"{tuple(video.shape)}."
        )
    if video.shape[-2] % 2 or video.shape[-1] % 2:
        raise ValueError(
            "write_video: expected an even height and width, got "
            f"{tuple(video.shape[-2:])}. Pad the video by a pixel."
        )
    av = import_extra("av", "video", "write_video")
    with writing_file(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=round(rate_hz))
        stream.height, stream.width = video.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for image in video.permute(0, 2, 3, 1).cpu().contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
