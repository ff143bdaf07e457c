"""Action chunks straight from a replay buffer's storage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.data.replay_buffers import Storage, TensorStorage

from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms.action_windows import runs
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
        _, index, actions = self._current()
        shape = episode.shape
        position, last = index.find(episode.reshape(-1), frame.reshape(-1))
        left = (last - position).clamp_(max=size - 1)
        in_order = index.order is None and actions.is_contiguous()
        if in_order and size <= len(actions):
            chunk = _copy_runs(actions, position, left, size)
        else:
            rows = _rows(position, left, size)
            rows = rows if index.order is None else index.order[rows]
            chunk = actions.index_select(0, rows.flatten())
        # A frame with n left before the end has its padding from slot n + 1 on.
        beyond = torch.ones(size, size, dtype=torch.bool, device=left.device).triu(1)
        is_pad = beyond.index_select(0, left)
        return chunk.view(*shape, size, actions.shape[-1]), is_pad.view(*shape, size)

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


def _copy_runs(actions: Tensor, position: Tensor, left: Tensor, size: int) -> Tensor:
    """Copy each chunk as one run of rows; gather only those that an end cuts."""
    n_runs = len(actions) - size + 1
    chunk = runs(actions, size).index_select(0, position.clamp(max=n_runs - 1))
    cut = (left < size - 1).nonzero().squeeze(-1)
    rows = _rows(position[cut], left[cut], size)
    patch = actions.index_select(0, rows.flatten())
    return chunk.index_copy_(0, cut, patch.view(len(cut), chunk.shape[1]))


def _rows(position: Tensor, left: Tensor, size: int) -> Tensor:
    """Return the rows ``[B, H]`` of each chunk; past the end, the last one again."""
    steps = torch.arange(size, device=position.device)
    return position.unsqueeze(-1) + torch.minimum(steps, left.unsqueeze(-1))


def _plain(column: Tensor) -> Tensor:
    """View a memory-mapped tensor as a plain one, whose indexing is cheaper."""
    return column.as_subclass(torch.Tensor)
