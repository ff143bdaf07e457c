"""Sampler of this rank's share of a global batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchrl.data.replay_buffers import ReplayBuffer, Sampler, Storage

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.distributed.ranks import Ranks
from torchrl_vla.errors import SettingsError


class ShareSampler(Sampler):
    """Draw the rows of the global batch, and keep those of this rank.

    Every rank draws the same rows, from generators of the same seed, so the union of
    the shares is the batch that one process would draw.

    Args:
        sampler: draws the global batch.
        ranks: that share it.

    Raises:
        SettingsError: in ``sample``: the ranks cannot share the batch evenly.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl.data.replay_buffers import SamplerWithoutReplacement
        >>> from tensordict import TensorDict
        >>> storage = LazyTensorStorage(4)
        >>> storage.set(slice(4), TensorDict(row=torch.arange(4), batch_size=[4]))
        >>> drawn = []
        >>> for rank in range(2):
        ...     inner = SamplerWithoutReplacement(shuffle=False)
        ...     sampler = ShareSampler(inner, Ranks(rank, 2))
        ...     drawn.append(sampler.sample(storage, 4)[0].tolist())
        >>> drawn
        [[0, 2], [1, 3]]
    """

    __signature__ = ConstructorSignature()

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        super().__init__()
        self.sampler, self.ranks = sampler, ranks

    @classmethod
    def share(cls, buffer: ReplayBuffer, ranks: Ranks) -> None:
        """Let a buffer give this rank's share of its batches; alone, all of them."""
        if not ranks.is_alone:
            buffer.set_sampler(cls(buffer.sampler, ranks))

    def sample(
        self, storage: Storage, batch_size: int
    ) -> tuple[Any, dict[str, object]]:
        """Return the rows of this rank, ``batch_size / ranks.count`` of them."""
        count = self.ranks.count
        if batch_size % count:
            raise SettingsError(
                f"ShareSampler: expected a batch_size that {count} ranks share evenly, "
                f"got {batch_size}. Pass a multiple of {count}."
            )
        self.sampler._rng = self._rng
        rows, info = self.sampler.sample(storage, batch_size)
        return torch.as_tensor(rows)[self.ranks.rank :: count], info

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler of the global batch."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sampler of the global batch."""
        self.sampler.load_state_dict(state_dict)

    def _empty(self) -> None:
        self.sampler._empty()

    def dumps(self, path: Path) -> None:
        """Write the sampler of the global batch."""
        self.sampler.dumps(path)

    def loads(self, path: Path) -> None:
        """Read the sampler of the global batch."""
        self.sampler.loads(path)

    def __repr__(self) -> str:
        return f"ShareSampler({self.sampler}, {self.ranks})"
