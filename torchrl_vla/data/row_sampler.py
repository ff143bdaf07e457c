"""Sample some of a storage's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers import Sampler, Storage

from torchrl_vla.schema import SchemaError


class RowSampler(Sampler):
    """Draw i.i.d. rows out of given ones, and leave the others in the storage.

    Frames that are no target themselves are still the past of those that are, and
    what history and chunks are gathered from.

    Args:
        rows: int64 ``[N]``, those that are drawn.

    Raises:
        SchemaError: there are none.

    Examples:
        >>> sampler = RowSampler(torch.tensor([2, 5]))
        >>> sampler.sample(None, 64)[0].unique()
        tensor([2, 5])
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        if not len(rows):
            raise SchemaError(
                "RowSampler: expected at least one row to draw, got none. Nothing is "
                "left to learn from."
            )
        self.rows = rows

    def sample(
        self, storage: Storage | None, batch_size: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return indices int64 ``[batch_size]``."""
        pick = torch.randint(len(self.rows), (batch_size,), generator=self._rng)
        return self.rows[pick], {}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows; the buffer keeps the generator."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows over."""
        self.rows = state_dict["rows"]

    def _empty(self) -> None:
        """Nothing to forget."""

    def dumps(self, path: Path) -> None:
        """Nothing to write: the rows follow from the frames."""

    def loads(self, path: Path) -> None:
        """Nothing to read."""

    def __repr__(self) -> str:
        return f"RowSampler({len(self.rows)} rows)"
