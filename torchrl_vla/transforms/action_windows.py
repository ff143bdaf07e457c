"""Action chunks of windows of consecutive frames."""

from __future__ import annotations

import torch
from torch import Tensor


def window_chunks(
    actions: Tensor, size: int, *, ends: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Build the chunk of every frame of windows, each of which stands for itself.

    Args:
        actions: ``[R, T, A]``; each row is one window.
        size: ``H``.
        ends: bool ``[R, T]``, True = an episode ends with this frame. The window's
            last frame ends one in any case.

    Returns:
        Chunks ``[R, T, H, A]``, padded with the episode's last action, and is_pad
        bool ``[R, T, H]``.

    Examples:
        >>> import torch
        >>> actions = torch.arange(4.0).view(1, 4, 1)
        >>> chunk, is_pad = window_chunks(actions, 2)
        >>> chunk[0, :, :, 0]
        tensor([[0., 1.],
                [1., 2.],
                [2., 3.],
                [3., 3.]])
        >>> is_pad[0, :, 1]
        tensor([False, False, False,  True])
    """
    if ends is None or not ends[:, :-1].any():
        return _uncut(actions, size)
    return _cut(actions, size, ends)


def _uncut(actions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    n_rows, n_steps, width = actions.shape
    tail = actions[:, -1:].expand(n_rows, size - 1, width)
    padded = torch.cat([actions, tail], dim=1)
    # One copy of overlapping views: no index tensor, hence no memory but the output.
    strides = (padded.stride(0), width, width, 1)
    chunk = padded.as_strided((n_rows, n_steps, size, width), strides)
    chunk = chunk.clone(memory_format=torch.contiguous_format)
    step = torch.arange(n_steps, device=actions.device).unsqueeze(-1)
    is_pad = step + torch.arange(size, device=actions.device) >= n_steps
    return chunk, is_pad.expand(n_rows, n_steps, size).clone()


def _cut(actions: Tensor, size: int, ends: Tensor) -> tuple[Tensor, Tensor]:
    n_rows, n_steps, width = actions.shape
    count = n_rows * n_steps
    # int32 halves the only scratch memory, where it can count the frames.
    dtype = torch.int32 if count + size < 2**31 else torch.int64
    frame = torch.arange(count, dtype=dtype, device=actions.device)
    frame = frame.view(n_rows, n_steps)
    ends = ends.clone()
    ends[:, -1] = True
    # The nearest end at or after each frame: ends in place, later ones flow back.
    last = torch.where(ends, frame, count).flip(1).cummin(1).values.flip(1)
    last = last.unsqueeze(-1)
    steps = torch.arange(size, dtype=dtype, device=actions.device)
    ahead = frame.unsqueeze(-1) + steps
    is_pad = ahead > last
    rows = torch.minimum(ahead, last, out=ahead).flatten()
    chunk = actions.reshape(count, width).index_select(0, rows)
    return chunk.view(n_rows, n_steps, size, width), is_pad
