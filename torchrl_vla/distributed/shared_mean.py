"""Mean over a batch of which every rank holds a share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_vla.distributed.ranks import Ranks


@dataclass(frozen=True)
class _Share:
    ranks: Ranks
    counts: bool


_share: ContextVar[_Share] = ContextVar("share")


@contextmanager
def shared_batch(ranks: Ranks, *, counts: bool = True) -> Iterator[None]:
    """Let :func:`masked_mean` divide by the elements of all ranks.

    Args:
        ranks: that hold shares of one batch; all of them enter.

    Keyword Args:
        counts: False = this rank's rows stand in for a share without rows.
    """
    token = _share.set(_Share(ranks, counts))
    try:
        yield
    finally:
        _share.reset(token)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average the values where a mask is True.

    Within :func:`shared_batch` the mean of the results over the ranks, and of their
    gradients, is that of the whole batch, however many elements each rank has.

    Args:
        values: of any shape.
        mask: bool of the same shape; True = counts.

    Examples:
        >>> values = torch.tensor([1.0, 3.0, torch.nan])
        >>> masked_mean(values, torch.tensor([True, True, False]))
        tensor(2.)
    """
    share = _share.get(None)
    total, count = torch.where(mask, values, 0.0).sum(), mask.sum()
    if share is None or share.ranks.is_alone:
        return total / count
    if not share.counts:
        total, count = 0.0 * total, 0 * count
    return total / (share.ranks.total(count) / share.ranks.count)
