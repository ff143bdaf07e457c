"""Aggregate of datasets whose images are read when frames are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.data.episode_choice import choose_episodes
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    HISTORY_IS_PAD_KEY,
    HISTORY_KEY,
    OBSERVATION_KEY,
)
from torchrl_vla.transforms.gather.episode_index import EpisodeIndex


class PartObservations(Transform):
    """Take the observations of sampled frames from the datasets that they come from.

    Robot space. **Reads** ``episode_index`` and ``frame_index`` int64 ``[*B]`` of the
    aggregate. **Writes** ``observation`` as the part has it, with its images, and with
    ``history_size`` T above 1 ``observation_history`` ``[*B, T, ...]`` and
    ``history_is_pad`` bool ``[*B, T]``, True = before the episode's first frame.

    Args:
        frames: ``[F]`` of the aggregate: those of the parts, one after the other.
        parts: the datasets.
        history_size: ``T``.
    """

    def __init__(
        self, frames: TensorDictBase, parts: Sequence[Demonstrations], history_size: int
    ) -> None:
        out_keys = [OBSERVATION_KEY]
        if history_size > 1:
            out_keys += [HISTORY_KEY, HISTORY_IS_PAD_KEY]
        super().__init__(in_keys=[EPISODE_KEY, FRAME_KEY], out_keys=out_keys)
        self._parts = [(part.frames, part.observations(history_size)) for part in parts]
        self._starts = torch.tensor([0, *map(len, parts)]).cumsum(0)
        self._index = EpisodeIndex(frames.get(EPISODE_KEY), frames.get(FRAME_KEY))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the observations into sampled data."""
        tensordict = tensordict.copy()  # buffer[:] returns the storage itself
        episode, frame = (tensordict.get(key).cpu() for key in self.in_keys)
        rows = self._index.window(episode, frame, 0, 1)[0].flatten()
        places, pieces = [], []
        for number, (frames, complete) in enumerate(self._parts):
            first, end = self._starts[number], self._starts[number + 1]
            place = ((rows >= first) & (rows < end)).nonzero().squeeze(-1)
            if len(place):
                piece = frames[rows[place] - first]
                piece = piece if complete is None else complete(piece)
                places.append(place)
                pieces.append(piece.select(*self.out_keys))
        order = torch.cat(places).argsort()
        found = torch.cat(pieces)[order].reshape(tensordict.batch_size)
        return tensordict.update(found.to(tensordict.device))

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # an environment renders its own images


class AggregatedDemonstrations(DemonstrationDataset):
    """Frames of several datasets, whose images stay where they are until sampled.

    :func:`aggregate` makes it of datasets whose frames hold no images, such as
    LeRobot's.

    Args:
        whole: a dataset of the numbers of all parts, one after the other.
        parts: the datasets that have the images.
        frames: ``[F]`` of the selected episodes; None = all.
    """

    def __init__(
        self,
        whole: DemonstrationDataset,
        parts: Sequence[Demonstrations],
        frames: TensorDict | None = None,
    ) -> None:
        super().__init__(
            whole.frames if frames is None else frames,
            whole.metadata,
            whole.instructions,
            whole.provenance,
        )
        self._whole, self._parts = whole, tuple(parts)

    def observations(self, history_size: int = 1) -> Transform:
        """Make the transform that takes observations from the parts."""
        return PartObservations(self._whole.frames, self._parts, history_size)

    def select_episodes(
        self, episodes: Tensor | Sequence[int]
    ) -> AggregatedDemonstrations:
        """Return the dataset of some episodes, with the same metadata.

        Raises:
            ValueError: an episode is unknown, or none is selected.
        """
        frames = choose_episodes(type(self).__name__, self.frames, episodes)
        return AggregatedDemonstrations(self._whole, self._parts, frames)

    def to_folder(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write a ``DemonstrationDataset``, with all images read into memory."""
        whole = DemonstrationDataset(
            self.replay_buffer(1)[:], self.metadata, self.instructions, self.provenance
        )
        return whole.to_folder(folder, overwrite=overwrite)
