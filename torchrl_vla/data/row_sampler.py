"""Sampler of a subset of a storage's rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchrl.data.replay_buffers import Sampler, Storage

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.schema import SchemaError


class RowSampler(Sampler):
    """Sample i.i.d. from a subset of rows; the other rows remain in the storage.

    Histories and chunks are gathered from the whole storage, so frames that are not
    sampled themselves still serve as the past and future of those that are.

    Args:
        rows: int64 ``[N]``, the rows to sample from.

    Raises:
        SchemaError: ``rows`` is empty.

    Examples:
        >>> sampler = RowSampler(torch.tensor([2, 5]))
        >>> sampler.sample(None, 64)[0].unique()
        tensor([2, 5])
    """

    __signature__ = ConstructorSignature()

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        if not len(rows):
            raise SchemaError(
                "RowSampler: expected at least one row to sample, got none. Nothing is "
                "left to learn from."
            )
        self.rows = rows

    def sample(
        self, storage: Storage | None, batch_size: int
    ) -> tuple[Tensor, dict[str, object]]:
        """Return indices int64 ``[batch_size]``."""
        pick = torch.randint(len(self.rows), (batch_size,), generator=self._rng)
        return self.rows[pick], {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rows; the buffer keeps the generator."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the rows."""
        self.rows = state_dict["rows"]

    def _empty(self) -> None:
        """Do nothing: the rows do not depend on what was sampled."""

    def dumps(self, path: Path) -> None:
        """Write nothing: the rows follow from the frames."""

    def loads(self, path: Path) -> None:
        """Read nothing."""

    def __repr__(self) -> str:
        return f"RowSampler({len(self.rows)} rows)"
