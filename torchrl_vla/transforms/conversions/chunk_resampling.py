"""Chunks of absolute actions at another control rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vla.transforms.conversions.feature_map import RotationSlot
from torchrl_vla.transforms.conversions.rotations import (
    from_quaternion,
    slerp,
    to_quaternion,
)

#: Times closer than this share of a step are the same.
_SAME_TIME = 1e-6


def resampled_size(size: int, ratio: float) -> int:
    """Return how many actions at the new rate fit into the time of ``size`` actions.

    Args:
        size: ``H``.
        ratio: new rate over old rate.

    Examples:
        >>> resampled_size(8, 2.0), resampled_size(15, 0.5), resampled_size(1, 5.0)
        (15, 8, 1)
    """
    return int((size - 1) * ratio + _SAME_TIME) + 1


def resample_chunk(
    chunk: Tensor,
    is_pad: Tensor | None,
    ratio: float,
    rotations: Sequence[RotationSlot] = (),
) -> tuple[Tensor, Tensor | None]:
    """Interpolate a chunk linearly at another control rate, rotations by slerp.

    The first action keeps its time, and no time after the last one is made up. A new
    slot is padded where its time is past the last action (or before the first) that is
    not; it repeats that action, so that padding is never mixed in.

    Args:
        chunk: ``[*B, H, A]``, targets (not deltas).
        is_pad: bool ``[*B, H]``, True = padded; the rest is in one piece. None = no
            slot is padded.
        ratio: new rate over old rate.
        rotations: among the dimensions.

    Returns:
        ``[*B, H', A]`` and its mask, see :func:`resampled_size`.

    Examples:
        >>> chunk = torch.tensor([[0.0], [1.0], [9.0]])
        >>> is_pad = torch.tensor([False, False, True])
        >>> faster, is_pad = resample_chunk(chunk, is_pad, 2.0)
        >>> faster.T, is_pad
        (tensor([[0.0000, 0.5000, 1.0000, 1.0000, 1.0000]]),
         tensor([False, False, False,  True,  True]))
    """
    size = chunk.shape[-2]
    new_size = resampled_size(size, ratio)
    times = torch.arange(new_size, dtype=torch.float64, device=chunk.device) / ratio
    nearest = times.round()
    times = torch.where((times - nearest).abs() < _SAME_TIME, nearest, times)
    times = times.clamp(max=size - 1).expand(*chunk.shape[:-2], new_size)
    if is_pad is not None:
        slots = torch.arange(size, device=chunk.device)
        first = torch.where(is_pad, size - 1, slots).amin(-1, keepdim=True)
        last = torch.where(is_pad, 0, slots).amax(-1, keepdim=True)
        all_pad = is_pad.all(-1, keepdim=True)
        is_pad = (times < first) | (times > last) | all_pad
        times = torch.where(
            all_pad, times, times.clamp(first, torch.maximum(first, last))
        )
    lower = times.floor()
    weight = (times - lower).unsqueeze(-1)
    left, right = (_take(chunk, index) for index in (lower, times.ceil()))
    mixed = left + (right - left) * weight.to(chunk.dtype)
    for slot in rotations:
        first, second = (
            to_quaternion(end[..., slot.dims].double() * slot.to_rad, slot.layout)
            for end in (left, right)
        )
        turned = from_quaternion(slerp(first, second, weight), slot.layout)
        mixed[..., slot.dims] = (turned / slot.to_rad).to(chunk.dtype)
    return mixed, is_pad


def _take(chunk: Tensor, index: Tensor) -> Tensor:
    index = index.long().unsqueeze(-1).expand(*index.shape, chunk.shape[-1])
    return chunk.gather(-2, index)
