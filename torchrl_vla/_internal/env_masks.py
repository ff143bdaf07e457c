"""Masks of the environments of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def env_mask(
    mask: Tensor | None, batch_size: torch.Size, device: torch.device | None = None
) -> Tensor:
    """Return a flag ``[*B, 1]`` or ``[*B]`` as bool ``[*B]``; None = all True.

    Args:
        mask: such as ``_reset``, ``_step`` or ``done``.
        batch_size: ``*B``.
        device: of the mask; None = its own, or the CPU for the one of None.

    Examples:
        >>> env_mask(torch.tensor([[True], [False]]), torch.Size([2]))
        tensor([ True, False])
    """
    if mask is None:
        return torch.ones(batch_size, dtype=torch.bool, device=device)
    mask = mask.reshape(batch_size)
    return mask if device is None else mask.to(device)


def where_env(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Take ``new`` in the environments of a mask, ``old`` elsewhere.

    Args:
        mask: bool ``[*B]``.
        new: ``[*B, ...]``.
        old: of the same shape.

    Examples:
        >>> mask = torch.tensor([True, False])
        >>> where_env(mask, torch.ones(2, 2), torch.zeros(2, 2))
        tensor([[1., 1.],
                [0., 0.]])
    """
    return torch.where(
        mask.reshape((*mask.shape, *(1,) * (new.ndim - mask.ndim))), new, old
    )
