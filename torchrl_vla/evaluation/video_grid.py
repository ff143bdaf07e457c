"""Grid of episodes' videos, side by side, with their successes marked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

_BORDER = 4
_RUNNING, _SUCCESS, _FAILURE = (128, 128, 128), (0, 200, 0), (220, 0, 0)


def video_grid(
    videos: Sequence[Tensor], successes: Sequence[bool], *, columns: int | None = None
) -> Tensor:
    """Tile episodes, each with a border: grey while it runs, then green or red.

    Green is a success. An episode that has ended shows its last image until the longest
    one ends. Places without an episode are black.

    Args:
        videos: uint8 ``[T, 3, h, w]`` each, all of one size.
        successes: of each episode, True = success.
        columns: of the grid; None makes it about square.

    Returns:
        uint8 ``[T, 3, H, W]`` with an even height and width.

    Raises:
        ValueError: there is no video, one has another size or is not uint8, or there
            are more or fewer successes.

    Examples:
        >>> videos = [torch.zeros(n, 3, 8, 8, dtype=torch.uint8) for n in (2, 5, 3)]
        >>> video_grid(videos, [True, False, True]).shape
        torch.Size([5, 3, 32, 32])
    """
    shapes = {tuple(video.shape[1:]) for video in videos}
    if (
        len(shapes) != 1
        or len(successes) != len(videos)
        or any(video.dtype != torch.uint8 or video.ndim != 4 for video in videos)
        or (columns is not None and columns < 1)
    ):
        raise ValueError(
            "video_grid: expected at least one video uint8 [T, 3, h, w], all of one "
            f"size, a success for each and columns >= 1, got {len(videos)} videos "
            f"{[tuple(video.shape) for video in videos]}, {len(successes)} successes "
            f"and columns={columns}."
        )
    ((_, height, width),) = shapes
    columns = columns or math.ceil(math.sqrt(len(videos)))
    lines = math.ceil(len(videos) / columns)
    tall, wide = height + 2 * _BORDER, width + 2 * _BORDER
    length = max(map(len, videos))
    grid = torch.zeros(length, 3, lines * tall, columns * wide, dtype=torch.uint8)
    for place, (video, success) in enumerate(zip(videos, successes, strict=True)):
        top, left = place // columns * tall, place % columns * wide
        tile = grid[:, :, top : top + tall, left : left + wide]
        end = len(video) - 1
        tile[:end] = _color(_RUNNING)
        tile[end:] = _color(_SUCCESS if success else _FAILURE)
        inner = tile[:, :, _BORDER:-_BORDER, _BORDER:-_BORDER]
        inner[: end + 1] = video
        inner[end + 1 :] = video[-1]
    return pad(grid, (0, grid.shape[-1] % 2, 0, grid.shape[-2] % 2))


def _color(rgb: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1)
