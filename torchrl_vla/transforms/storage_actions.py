"""Action chunks straight from a replay buffer's storage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.data.replay_buffers import Storage, TensorStorage

from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms.episode_index import EpisodeIndex


class _Snapshot(NamedTuple):
    version: tuple[int, int]
    index: EpisodeIndex
    actions: Tensor


class StorageActions:
    """Gather the actions that follow a frame from a storage, by index.

    The index is a snapshot of the storage: built at first use, built again when the
    storage has been written since. Its actions are a view, so the gather reads from a
    memory-mapped file the rows it needs and no others.

    Args:
        storage: holds frames in any order and of any number of batch dimensions.

    Keyword Args:
        action_key: float ``[*B, A]``.
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
        action_key: NestedKey,
        episode_key: NestedKey,
        frame_key: NestedKey,
        done_key: NestedKey | None,
    ) -> None:
        if not isinstance(storage, TensorStorage):
            raise TypeError(
                "ActionChunkTransform: expected a TensorStorage (LazyMemmapStorage, "
                "LazyTensorStorage) at argument 'storage', got "
                f"{type(storage).__name__}. Pass the buffer's .storage."
            )
        self.storage = storage
        self._keys = (action_key, episode_key, frame_key)
        self._done_key = done_key
        self._snapshot: _Snapshot | None = None

    def gather(
        self, episode: Tensor, frame: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Return actions ``[*B, H, A]`` and is_pad bool ``[*B, H]``."""
        snapshot = self._current()
        rows, is_pad = snapshot.index.rows(episode, frame, size)
        chunk = snapshot.actions.index_select(0, rows.flatten())
        return chunk.view(*rows.shape, chunk.shape[-1]), is_pad

    def _current(self) -> _Snapshot:
        # The revision counts writes of every kind, also by other processes.
        version = (int(self.storage._mutation_revision), len(self.storage))
        snapshot = self._snapshot
        if snapshot is None or snapshot.version != version:
            snapshot = self._snapshot = self._build(version)
        return snapshot

    def _build(self, version: tuple[int, int]) -> _Snapshot:
        frames = self.storage.get(slice(None))
        if not is_tensor_collection(frames):
            raise SchemaError(
                "ActionChunkTransform: expected a storage of tensordicts, got "
                f"{type(frames).__name__}."
            )
        action, episode, frame = self._columns(frames)
        done = None if self._done_key is None else frames.get(self._done_key, None)
        if done is not None:
            done = _plain(done).reshape(-1)
        return _Snapshot(
            version,
            EpisodeIndex(episode.reshape(-1), frame.reshape(-1), done=done),
            action.reshape(-1, action.shape[-1]),
        )

    def _columns(self, frames: TensorDictBase) -> list[Tensor]:
        missing = [key for key in self._keys if frames.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"ActionChunkTransform: expected {list(self._keys)} in the storage, "
                f"got no {missing}. Available: {sorted(map(str, frames.keys()))}."
            )
        columns = [_plain(frames.get(key)) for key in self._keys]
        action, episode, frame = columns
        if not action.shape[:-1] == episode.shape == frame.shape:
            shapes = {key: tuple(c.shape) for key, c in zip(self._keys, columns)}
            raise SchemaError(
                "ActionChunkTransform: expected actions [*B, A] and indices [*B] in "
                f"the storage, got {shapes}."
            )
        return columns


def _plain(column: Tensor) -> Tensor:
    """View a memory-mapped tensor as a plain one, whose indexing is cheaper."""
    return column.as_subclass(torch.Tensor)
