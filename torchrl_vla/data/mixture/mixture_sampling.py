"""Storage and sampler of the frames of several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.data.replay_buffers import Sampler, Storage

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.data.mixture.embodiment import Embodiment
from torchrl_vla.schema import SchemaError

# Why not TorchRL's ReplayBufferEnsemble: its SamplerEnsemble samples a dataset per
# block of rows. With blocks of one row the samples are i.i.d., but its StorageEnsemble
# then calls each dataset's storage and transforms once per row (which may open a
# video), its collate function stacks rows and so excludes robots of different sizes,
# and its state_dict contains the datasets. This storage gathers once per dataset.


class MixtureStorage(Storage):
    """Read-only storage of the frames of several datasets in model space.

    Row ``i`` of dataset ``k`` has the index ``len(dataset 0) + ... + i``. A batch is
    gathered with one read per dataset that occurs in it. ``state_dict`` identifies the
    datasets and does not contain them.

    Args:
        buffers: of each dataset, with the transforms that act in robot space.
        embodiments: of each dataset.
    """

    __signature__ = ConstructorSignature()

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

    def get(self, index: Tensor | Sequence[int] | slice | int) -> TensorDict:
        """Return the rows of an index, in its order."""
        index = torch.arange(len(self))[index]
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

    def state_dict(self) -> dict[str, object]:
        """Return the ids and lengths of the datasets."""
        return {
            "datasets": [e.metadata.dataset_id for e in self._embodiments],
            "frames": self.lengths.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Check that the state is of these datasets.

        Raises:
            SchemaError: the state is of other datasets.
        """
        _check_same("datasets", self.state_dict(), state_dict)

    def set(self, *args: object, **kwargs: object) -> None:
        """Refuse to write: a mixture is read-only.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "MixtureReplay: expected to be read, got data to write. Write to a "
            "dataset, then create the mixture."
        )

    def __repr__(self) -> str:
        return f"MixtureStorage({self._embodiments})"


class MixtureSampler(Sampler):
    """Sampler of a dataset by its weight, then uniformly of one of its frames.

    The only state is that of the generator, which continues the stream of batches.

    Args:
        weights: float64 ``[N]`` that sum to one.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def sample(
        self, storage: MixtureStorage, batch_size: int
    ) -> tuple[Tensor, dict[str, object]]:
        """Return indices int64 ``[batch_size]``."""
        member = torch.multinomial(
            self.weights, batch_size, replacement=True, generator=self._rng
        )
        # float64 is precise enough for any number of frames, and rand is below 1.
        share = torch.rand(batch_size, dtype=torch.float64, generator=self._rng)
        length = storage.lengths[member]
        frame = (share * length).long()
        start = storage.lengths.cumsum(0)[member] - length
        return start + frame, {}

    def state_dict(self) -> dict[str, object]:
        """Return the weights."""
        return {"weights": self.weights.tolist()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Check that the state is of these weights.

        Raises:
            SchemaError: the state is of other weights.
        """
        _check_same("weights", self.state_dict(), state_dict)

    def _empty(self) -> None:
        """Do nothing: only the generator has state."""

    def dumps(self, path: Path) -> None:
        """Write nothing: the buffer writes the generator."""

    def loads(self, path: Path) -> None:
        """Read nothing."""


def _check_same(what: str, ours: dict[str, object], theirs: dict[str, object]) -> None:
    if ours != theirs:
        raise SchemaError(
            f"MixtureReplay.load_state_dict: expected the state of a mixture with the "
            f"{what} {ours}, got {theirs}. Its batches would not continue the "
            "stream: create the same mixture, or start a new stream."
        )
