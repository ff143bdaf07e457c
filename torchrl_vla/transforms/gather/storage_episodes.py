"""Episode index of a storage, as of its last write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.data.replay_buffers import Storage, TensorStorage

from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms.gather.episode_index import EpisodeIndex


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The frames of a storage and their index at one of its versions.

    Args:
        version: of the storage.
        frames: as they are stored, of any number of batch dimensions.
        shape: of those batch dimensions.
        index: of the frames, flattened.
    """

    version: tuple[int, int]
    frames: TensorDictBase
    shape: torch.Size
    index: EpisodeIndex


class StorageEpisodes:
    """Index a storage's frames by episode, again whenever it has been written to.

    Args:
        storage: holds frames in any order and of any number of batch dimensions.

    Keyword Args:
        caller: the component that asks; opens the error messages.
        episode_key: int64 ``[*B]``.
        frame_key: int64 ``[*B]``.
        done_key: bool ``[*B]`` or ``[*B, 1]``, checked where the storage has it; None
            checks nothing.

    Raises:
        TypeError: the storage is no :class:`~torchrl.data.TensorStorage`.
        MissingKeyError: the storage lacks a key.
        SchemaError: shapes disagree, or the frames are not whole episodes.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        caller: str,
        episode_key: NestedKey,
        frame_key: NestedKey,
        done_key: NestedKey | None,
    ) -> None:
        if not isinstance(storage, TensorStorage):
            raise TypeError(
                f"{caller}: expected a TensorStorage (LazyMemmapStorage, "
                "LazyTensorStorage) at argument 'storage', got "
                f"{type(storage).__name__}. Pass the buffer's .storage."
            )
        self.storage = storage
        self._caller = caller
        self._keys = (episode_key, frame_key)
        self._done_key = done_key
        self._snapshot: Snapshot | None = None

    def current(self) -> Snapshot:
        """Return the snapshot of the storage as it is now."""
        # The revision counts writes of every kind, also by other processes.
        version = (int(self.storage._mutation_revision), len(self.storage))
        snapshot = self._snapshot
        if snapshot is None or snapshot.version != version:
            snapshot = self._snapshot = self._build(version)
        return snapshot

    def _build(self, version: tuple[int, int]) -> Snapshot:
        frames = self.storage.get(slice(None))
        if not is_tensor_collection(frames):
            raise SchemaError(
                f"{self._caller}: expected a storage of tensordicts, got "
                f"{type(frames).__name__}."
            )
        missing = [key for key in self._keys if frames.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"{self._caller}: expected {list(self._keys)} in the storage, got no "
                f"{missing}. Available: {sorted(map(str, frames.keys()))}."
            )
        episode, frame = (frames.get(key).as_subclass(Tensor) for key in self._keys)
        if episode.shape != frame.shape:
            raise SchemaError(
                f"{self._caller}: expected indices of one shape [*B] in the storage, "
                f"got {tuple(episode.shape)} and {tuple(frame.shape)}."
            )
        done = None if self._done_key is None else frames.get(self._done_key, None)
        if done is not None:
            done = done.as_subclass(Tensor).reshape(-1)
        index = EpisodeIndex(episode.reshape(-1), frame.reshape(-1), done=done)
        return Snapshot(version, frames, episode.shape, index)
