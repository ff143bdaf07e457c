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


def runs(actions: Tensor, size: int) -> Tensor:
    """View ``[N, A]`` as its runs of ``size`` consecutive rows, ``[N - H + 1, H * A]``.

    The view costs no memory, and to select from it copies whole runs.
    """
    n_rows, width = actions.shape
    return actions.as_strided((n_rows - size + 1, size * width), (width, 1))


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
    ends = ends.clone()
    ends[:, -1] = True
    # With an episode's last action H times, every chunk is one run of the source, and
    # is copied as one: H times fewer copies than a gather of single actions.
    copies = torch.where(ends, size, 1).flatten()
    source = actions.reshape(-1, width).repeat_interleave(copies, dim=0)
    start = copies.cumsum(0) - copies
    chunk = runs(source, size).index_select(0, start)
    repeated = torch.ones(len(source), 1, dtype=torch.bool, device=actions.device)
    repeated.index_fill_(0, start, False)
    is_pad = runs(repeated, size).index_select(0, start)
    return (
        chunk.view(n_rows, n_steps, size, width),
        is_pad.view(n_rows, n_steps, size),
    )
