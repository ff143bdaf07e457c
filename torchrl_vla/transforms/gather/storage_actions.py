"""Action chunks gathered from a replay buffer's storage."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data.replay_buffers import Storage

from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms.gather.action_windows import runs
from torchrl_vla.transforms.gather.label_runs import LabelRuns
from torchrl_vla.transforms.gather.storage_episodes import Snapshot, StorageEpisodes


class StorageActions:
    """Gather the actions around a frame from a storage, by index.

    Its actions are a view, so the gather reads from a memory-mapped file the rows it
    needs and no others. Where the storage has ``label_key``, an action without a label
    ends a chunk as an episode's end does.

    Args:
        storage: holds frames in any order and of any number of batch dimensions.

    Keyword Args:
        action_key: float ``[*B, A]``.
        episode_key: int64 ``[*B]``.
        frame_key: int64 ``[*B]``.
        done_key: bool ``[*B]`` or ``[*B, 1]``, checked where the storage has it; None
            checks nothing.
        label_key: bool ``[*B]`` or ``[*B, 1]``, True = the action is a target, where
            the storage has it; None = all are.

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
        label_key: NestedKey | None = None,
    ) -> None:
        self._episodes = StorageEpisodes(
            storage,
            caller="ActionChunkTransform",
            episode_key=episode_key,
            frame_key=frame_key,
            done_key=done_key,
        )
        self._action_key = action_key
        self._label_key = label_key
        self._seen: Snapshot | None = None

    @property
    def storage(self) -> Storage:
        """Where the actions are gathered from."""
        return self._episodes.storage

    def gather(
        self, episode: Tensor, frame: Tensor, size: int, first_step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return actions ``[*B, H, A]`` and is_pad bool ``[*B, H]``.

        Args:
            episode: int64 ``[*B]``.
            frame: int64 ``[*B]``.
            size: ``H``.
            first_step: where the chunk begins, in steps from the frame.
        """
        snapshot, actions = self._current()
        if first_step:
            rows, is_pad = snapshot.index.window(episode, frame, first_step, size)
            if self._labels is not None:
                is_pad |= self._labels.is_cut(rows, -first_step)
            chunk = actions.index_select(0, rows.flatten())
            return chunk.view(*rows.shape, actions.shape[-1]), is_pad
        index, shape = snapshot.index, episode.shape
        position, last = index.find(episode.reshape(-1), frame.reshape(-1))
        left = (last - position).clamp_(max=size - 1)
        if self._labels is not None:
            left = torch.minimum(left, self._labels.left(position))
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
        if self._labels is not None:
            is_pad |= ~self._labels.at(position).unsqueeze(-1)
        return chunk.view(*shape, size, actions.shape[-1]), is_pad.view(*shape, size)

    def _current(self) -> tuple[Snapshot, Tensor]:
        snapshot = self._episodes.current()
        if snapshot is not self._seen:
            self._actions = self._read_actions(snapshot)
            self._labels = self._read_labels(snapshot)
            self._seen = snapshot
        return snapshot, self._actions

    def _read_actions(self, snapshot: Snapshot) -> Tensor:
        action = snapshot.frames.get(self._action_key, None)
        if action is None:
            raise MissingKeyError(
                f"ActionChunkTransform: expected {self._action_key!r} in the storage, "
                f"got {sorted(map(str, snapshot.frames.keys()))}."
            )
        if action.shape[:-1] != snapshot.shape:
            raise SchemaError(
                "ActionChunkTransform: expected actions [*B, A] and indices [*B] in "
                f"the storage, got {tuple(action.shape)} and {tuple(snapshot.shape)}."
            )
        # A plain view of a memory-mapped tensor: its indexing is cheaper.
        return action.as_subclass(torch.Tensor).reshape(-1, action.shape[-1])

    def _read_labels(self, snapshot: Snapshot) -> LabelRuns | None:
        key = self._label_key
        labels = None if key is None else snapshot.frames.get(key, None)
        if labels is None:
            return None
        flat = labels.as_subclass(torch.Tensor).reshape(-1)
        if flat.dtype != torch.bool or flat.shape != (snapshot.shape.numel(),):
            raise SchemaError(
                f"ActionChunkTransform: expected bool {list(snapshot.shape)}, with or "
                f"without a last 1, at {key!r} in the storage, got {labels.dtype} "
                f"{list(labels.shape)}."
            )
        return LabelRuns(flat, snapshot.index.order)


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
