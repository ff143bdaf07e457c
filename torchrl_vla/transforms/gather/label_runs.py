"""Run lengths of consecutive expert-labeled frames."""

from __future__ import annotations

import torch
from torch import Tensor


class LabelRuns:
    """Know which frames are labeled, and how many follow each without a gap.

    Where an expert labeled only some frames (it took over now and then), what follows
    the last label is the policy's own doing and no target. A run may reach past an
    episode's end, which whoever asks knows better.

    Args:
        labels: bool ``[N]``, in the order of the rows.
        order: the row of each position; None = rows are positions.

    Examples:
        >>> labels = LabelRuns(torch.tensor([True, True, False, True]), None)
        >>> labels.left(torch.arange(4))
        tensor([1, 0, 0, 0])
    """

    def __init__(self, labels: Tensor, order: Tensor | None) -> None:
        self._rows = labels
        self._labels = labels if order is None else labels[order]
        count = len(labels)
        place = torch.arange(count, device=labels.device)
        # The nearest frame without a label at or after each.
        gap = torch.where(self._labels, count, place).flip(0).cummin(0).values.flip(0)
        self._left = (gap - place - 1).clamp_min(0)

    def at(self, position: Tensor) -> Tensor:
        """Return whether frames are labeled, bool ``[B]``."""
        return self._labels[position]

    def left(self, position: Tensor) -> Tensor:
        """Return how many labeled frames follow each, int64 ``[B]``."""
        return self._left[position]

    def is_cut(self, rows: Tensor, own: int) -> Tensor:
        """Return which slots of windows no run of labels joins to the frame's own.

        Args:
            rows: of the windows' frames, int64 ``[*B, T]``.
            own: the slot of the frame itself.
        """
        missing = ~self._rows[rows]
        after = missing[..., own:].cumsum(-1)
        before = missing[..., : own + 1].flip(-1).cumsum(-1).flip(-1)
        return torch.cat([before[..., :-1], after], dim=-1) > 0


def cuts_around(unlabeled: Tensor) -> Tensor:
    """Return where chunks end so that none runs through a frame without a label.

    Examples:
        >>> cuts_around(torch.tensor([False, False, True, False]))
        tensor([False,  True,  True, False])
    """
    cuts = unlabeled.clone()
    cuts[..., :-1] |= unlabeled[..., 1:]
    return cuts
