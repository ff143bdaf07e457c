"""TorchRL's storage and sampler, for the frames of several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.data.replay_buffers import Sampler, Storage

from torchrl_vla.data.mixture.embodiment import Embodiment
from torchrl_vla.schema import SchemaError

# TorchRL's ReplayBufferEnsemble was looked at first. Its SamplerEnsemble draws a
# dataset per block of rows. With blocks of one row (num_buffer_sampled = batch size)
# the draw is i.i.d., but its StorageEnsemble then calls each dataset's storage and
# transforms once per row (64 calls for 64 rows, each of which may open a video), its
# collate function stacks rows and so cannot take robots of different sizes, and its
# state_dict holds the datasets themselves. What follows gathers once per dataset and
# pads.


class MixtureStorage(Storage):
    """Read frames of several datasets by one index, each as its embodiment gives it.

    Row ``i`` of dataset ``k`` has the index ``len(dataset 0) + ... + i``. A batch is
    gathered with one read per dataset that occurs in it. The data are the datasets':
    nothing can be written, and ``state_dict`` holds what identifies them, not them.

    Args:
        buffers: of each dataset, with the transforms that act in robot space.
        embodiments: of each dataset.
    """

    def __init__(
        self, buffers: Sequence[ReplayBuffer], embodiments: Sequence[Embodiment]
    ) -> None:
        self.lengths = torch.tensor([len(buffer) for buffer in buffers])
        self._buffers = list(buffers)
        self._embodiments = list(embodiments)
        self._ends = self.lengths.cumsum(0)
        super().__init__(max_size=int(self._ends[-1]))

    def __len__(self) -> int:
        return self.max_size

    def get(self, index: Tensor | slice | int | Any) -> TensorDict:
        """Return the rows of an index, in its order."""
        if isinstance(index, (int, slice)):
            index = torch.arange(len(self))[index]
        index = torch.as_tensor(index)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        flat = index.reshape(-1)
        member = torch.searchsorted(self._ends, flat, right=True)
        parts, places = [], []
        for number in member.unique().tolist():
            place = (member == number).nonzero().squeeze(-1)
            start = self._ends[number] - self.lengths[number]
            frames = self._buffers[number][flat[place] - start]
            parts.append(self._embodiments[number].to_model_space(frames))
            places.append(place)
        rows = torch.cat(parts)[torch.cat(places).argsort()]
        return rows if index.ndim else rows[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the datasets."""
        return {
            "datasets": [e.metadata.dataset_id for e in self._embodiments],
            "frames": self.lengths.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the state is of these datasets.

        Raises:
            SchemaError: it is of others.
        """
        _check_same("datasets", self.state_dict(), state_dict)

    def set(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a mixture is read only.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "MixtureReplay: expected to be read, got data to write. Write to a "
            "dataset, then make the mixture."
        )

    def __repr__(self) -> str:
        return f"MixtureStorage({self._embodiments})"


class MixtureSampler(Sampler):
    """Draw, for each row, a dataset by its weight and one of its frames evenly.

    All the state is the generator's, so the stream of batches continues from it.

    Args:
        weights: float64 ``[N]``, summing to one.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def sample(self, storage: MixtureStorage, batch_size: int) -> tuple[Tensor, dict]:
        """Return indices int64 ``[batch_size]``."""
        member = torch.multinomial(
            self.weights, batch_size, replacement=True, generator=self._rng
        )
        # float64 holds more digits than any dataset has frames; rand is below 1.
        share = torch.rand(batch_size, dtype=torch.float64, generator=self._rng)
        length = storage.lengths[member]
        frame = (share * length).long()
        start = storage.lengths.cumsum(0)[member] - length
        return start + frame, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return {"weights": self.weights.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the state is of these weights.

        Raises:
            SchemaError: it is of others.
        """
        _check_same("weights", self.state_dict(), state_dict)

    def _empty(self) -> None:
        """Nothing to forget."""

    def dumps(self, path: Any) -> None:
        """Nothing to write: the buffer writes the generator."""

    def loads(self, path: Any) -> None:
        """Nothing to read."""


def _check_same(what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if ours != theirs:
        raise SchemaError(
            f"MixtureReplay.load_state_dict: expected the state of a mixture with the "
            f"{what} {ours}, got {theirs}. Its batches would not go on as they did: "
            "make the mixture as it was, or start a new stream."
        )
