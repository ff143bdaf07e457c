"""Transform that gathers action chunks as training targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Transform

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IS_LABELED_KEY,
    MissingKeyError,
    SchemaError,
    check_images_are_fresh,
    check_positive_int,
)
from torchrl_vla.transforms.gather.action_windows import window_chunks
from torchrl_vla.transforms.gather.label_runs import cuts_around
from torchrl_vla.transforms.gather.storage_actions import StorageActions


@dataclass(frozen=True)
class ActionChunkKeys:
    """Name the entries that :class:`ActionChunkTransform` reads and writes.

    Args:
        action: one action per frame.
        chunk: the target.
        pad: the mask, True = padded.
        episode: the episode of a frame.
        frame: the step of a frame within its episode.
        done: its entry under ``next`` ends an episode. With a storage it only has to
            agree with the indices. None = ignore it.
        label: True = the frame's action is a target. None = ignore it.
    """

    action: NestedKey = ACTION_KEY
    chunk: NestedKey = ACTION_CHUNK_KEY
    pad: NestedKey = ACTION_IS_PAD_KEY
    episode: NestedKey = EPISODE_KEY
    frame: NestedKey = FRAME_KEY
    done: NestedKey | None = "done"
    label: NestedKey | None = IS_LABELED_KEY

    def __post_init__(self) -> None:
        for name, key in vars(self).copy().items():
            if key is not None:
                object.__setattr__(self, name, unravel_key(key))


@torchrl_spellings(
    records={
        "keys": (
            ActionChunkKeys,
            {
                "action_key": "action",
                "chunk_key": "chunk",
                "pad_key": "pad",
                "done_key": "done",
            },
        )
    },
    same={"time_dim": (-2,)},
    instead={"time_dim": "data [*B, T]: time is the last batch dimension"},
)
class ActionChunkTransform(Transform):
    """Give every frame the next ``H`` actions of its episode as target.

    With the ``storage`` of a replay buffer, the actions are gathered from it by
    episode and frame when a batch is sampled. The target of a frame is then the same
    under every sampler and every order of the rows, and only slots past the episode's
    end are padded. Without a storage, each row of the data has to be one window of
    consecutive frames ``[*B, T]``; it is cut at the ends that it carries and padded at
    its own. A flat sample without a storage raises: the next row of a sample is not
    the next frame.

    Padded slots repeat the episode's last action (before its start, the first); mask
    them by ``action_is_pad``. An episode that is still being written ends, for now, at
    its last stored frame. Where frames say ``is_labeled``, an action that is not the
    expert's ends a chunk, too, and the chunk of a frame without a label is all padding:
    the policy's own actions are never a target. Put this transform before those that
    change the action (``ActionScaling``); since the chunk must hold the frame's own
    action, a wrong order raises. It writes nothing on ``extend``, and in an
    environment, which has no future, it does nothing.

    **Reads** ``action`` float ``[*B, A]``; with a storage also ``episode_index`` and
    ``frame_index`` int64 ``[*B]``; without one, where present, those two and
    ``("next", done)`` bool ``[*B, 1]``; where present, ``is_labeled`` bool
    ``[*B, 1]``. Any space.

    **Writes** ``action_chunk`` ``[*B, H, A]`` and ``action_is_pad`` bool ``[*B, H]``.

    Args:
        chunk_size: ``H``.

    Keyword Args:
        storage: the storage of the buffer that this transform samples from.
        first_step: the chunk's first action, in steps from the frame. Negative for
            policies whose target begins in the past, such as LeRobot's Diffusion with
            its history of observations; needs a storage.
        keys: of what is read and written; None = ``ActionChunkKeys()``. TorchRL's
            ``action_key``, ``chunk_key``, ``pad_key`` and ``done_key`` are accepted.

    Raises:
        ValueError: ``chunk_size < 1``, the chunk does not hold the frame's own action,
            or keys are given twice.
        MissingKeyError: a key is missing, or a flat sample comes without a storage.
        SchemaError: the frames of an episode have holes or repeat, shapes disagree,
            the sampled action is not the stored one, or an image is of an earlier
            step.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> storage = LazyTensorStorage(4)
        >>> chunks = ActionChunkTransform(3, storage=storage)
        >>> buffer = TensorDictReplayBuffer(storage=storage, transform=chunks)
        >>> frames = TensorDict(
        ...     {
        ...         "action": torch.tensor([[0.0], [10.0], [1.0], [11.0]]),
        ...         "episode_index": torch.tensor([0, 1, 0, 1]),
        ...         "frame_index": torch.tensor([0, 0, 1, 1]),
        ...     },
        ...     [4],
        ... )
        >>> _ = buffer.extend(frames)
        >>> buffer[:]["action_chunk"][:2, :, 0]
        tensor([[ 0.,  1.,  1.],
                [10., 11., 11.]])
        >>> window = TensorDict({"action": torch.arange(3.0).view(1, 3, 1)}, [1, 3])
        >>> ActionChunkTransform(2)(window)["action_is_pad"]
        tensor([[[False, False],
                 [False, False],
                 [False,  True]]])
    """

    def __init__(
        self,
        chunk_size: int,
        *,
        storage: Storage | None = None,
        first_step: int = 0,
        keys: ActionChunkKeys | None = None,
    ) -> None:
        keys = keys or ActionChunkKeys()
        super().__init__(in_keys=[keys.action], out_keys=[keys.chunk, keys.pad])
        check_positive_int("ActionChunkTransform", "chunk_size", chunk_size)
        if not -chunk_size < first_step <= 0:
            raise ValueError(
                f"ActionChunkTransform: expected first_step in {1 - chunk_size} .. 0, "
                f"so that the chunk holds the frame's own action, got {first_step}."
            )
        self.chunk_size = chunk_size
        self.first_step = first_step
        self.episode_key = keys.episode
        self.frame_key = keys.frame
        self.done_key = None if keys.done is None else unravel_key(("next", keys.done))
        self.label_key = keys.label
        self.storage = storage

    @property
    def storage(self) -> Storage | None:
        """The storage that chunks are gathered from; None = data are windows."""
        return None if self._stored is None else self._stored.storage

    @storage.setter
    def storage(self, storage: Storage | None) -> None:
        self._stored = None
        if storage is not None:
            self._stored = StorageActions(
                storage,
                action_key=self.action_key,
                episode_key=self.episode_key,
                frame_key=self.frame_key,
                done_key=self.done_key,
                label_key=self.label_key,
            )

    @property
    def action_key(self) -> NestedKey:
        """Key of one action per frame."""
        return self.in_keys[0]

    @property
    def chunk_key(self) -> NestedKey:
        """Key of the target."""
        return self.out_keys[0]

    @property
    def pad_key(self) -> NestedKey:
        """Key of the mask."""
        return self.out_keys[1]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk and its mask into sampled data."""
        check_images_are_fresh("ActionChunkTransform", tensordict)
        (action,) = self._get(tensordict, [self.action_key])
        build = self._from_windows if self._stored is None else self._from_storage
        chunk, is_pad = build(tensordict, action)
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        tensordict.set(self.chunk_key, chunk)
        tensordict.set(self.pad_key, is_pad)
        return tensordict

    def _from_storage(
        self, tensordict: TensorDictBase, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        episode, frame = self._get(tensordict, [self.episode_key, self.frame_key])
        assert self._stored is not None  # forward chose this way
        chunk, is_pad = self._stored.gather(
            episode.to(self._stored.storage.device),
            frame.to(self._stored.storage.device),
            self.chunk_size,
            self.first_step,
        )
        chunk, is_pad = chunk.to(action.device), is_pad.to(action.device)
        same = chunk[..., -self.first_step, :] == action
        if not same.all() and not (same | action.isnan()).all():
            raise SchemaError(
                f"ActionChunkTransform: expected the stored action at "
                f"{self.action_key!r}, got another one in the sample. Put this "
                "transform before those that change the action, and pass the storage "
                "that is sampled."
            )
        return chunk, is_pad

    def _from_windows(
        self, tensordict: TensorDictBase, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first_step:
            raise MissingKeyError(
                "ActionChunkTransform: expected storage=buffer.storage, which chunks "
                f"that begin at first_step={self.first_step} are gathered from, got "
                "none."
            )
        if action.ndim < 3 and not _is_named_window(tensordict, action):
            keys = [self.episode_key, self.frame_key]
            missing = [key for key in keys if tensordict.get(key, None) is None]
            raise MissingKeyError(
                "ActionChunkTransform: expected windows [*B, T, A] at "
                f"{self.action_key!r}, got shape {tuple(action.shape)}, which is a "
                "flat sample. Pass storage=buffer.storage to gather by "
                f"{keys} (missing from this sample: {missing}), or unsqueeze a single "
                "window to [1, T, A]."
            )
        shape = action.shape[:-1]
        ends = self._ends(tensordict, shape)
        unlabeled = self._unlabeled(tensordict, shape)
        if unlabeled is not None:
            cuts = cuts_around(unlabeled)
            ends = cuts if ends is None else ends | cuts
        chunk, is_pad = window_chunks(
            action.reshape(-1, *action.shape[-2:]),
            self.chunk_size,
            ends=None if ends is None else ends.reshape(-1, shape[-1]),
        )
        is_pad = is_pad.view(*shape, self.chunk_size)
        if unlabeled is not None:
            is_pad = is_pad | unlabeled.unsqueeze(-1)
        return chunk.view(*shape, self.chunk_size, action.shape[-1]), is_pad

    def _unlabeled(
        self, tensordict: TensorDictBase, shape: torch.Size
    ) -> Tensor | None:
        """Return bool ``[*B, T]``, True = the action is no target; None = all are."""
        key = self.label_key
        labels = None if key is None else tensordict.get(key, None)
        return None if labels is None else ~self._lined_up(labels, key, shape).bool()

    def _ends(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor | None:
        """Return bool ``[*B, T]``, True = the episode ends with this frame."""
        ends = None
        done = None if self.done_key is None else tensordict.get(self.done_key, None)
        if done is not None:
            ends = self._lined_up(done, self.done_key, shape).bool()
        episode = tensordict.get(self.episode_key, None)
        if episode is not None:
            episode = self._lined_up(episode, self.episode_key, shape)
            changes = torch.zeros(shape, dtype=torch.bool, device=episode.device)
            changes[..., :-1] = episode[..., 1:] != episode[..., :-1]
            ends = changes if ends is None else ends | changes
        frame = tensordict.get(self.frame_key, None)
        if frame is not None:
            self._check_consecutive(frame, ends, shape)
        return ends

    def _lined_up(self, leaf: Tensor, key: NestedKey, shape: torch.Size) -> Tensor:
        if leaf.shape not in (shape, torch.Size([*shape, 1])):
            raise SchemaError(
                f"ActionChunkTransform: expected {tuple(shape)}, with or without a "
                f"last 1, at {key!r}, got {tuple(leaf.shape)}. It has to line up with "
                f"{self.action_key!r}."
            )
        return leaf.reshape(shape)

    def _check_consecutive(
        self, frame: Tensor, ends: Tensor | None, shape: torch.Size
    ) -> None:
        frame = self._lined_up(frame, self.frame_key, shape)
        jumps = frame[..., 1:] != frame[..., :-1] + 1
        if ends is not None:
            jumps &= ~ends[..., :-1]
        if jumps.any():
            where = jumps.nonzero()[0].tolist()
            raise SchemaError(
                "ActionChunkTransform: expected windows of consecutive frames at "
                f"{self.frame_key!r}, got a jump after index {where}. Pass "
                "storage=buffer.storage to gather by index instead."
            )

    def _get(self, tensordict: TensorDictBase, keys: list[NestedKey]) -> list[Tensor]:
        leaves = [tensordict.get(key, None) for key in keys]
        missing = [key for key, leaf in zip(keys, leaves, strict=True) if leaf is None]
        if missing:
            raise MissingKeyError(
                f"ActionChunkTransform: expected {keys} in the data, got no {missing}. "
                f"Available: {sorted(map(str, tensordict.keys(True, True)))}."
            )
        return leaves

    # In an environment there is no future to build a target from.

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict

    def transform_output_spec(self, output_spec: TensorDictBase) -> TensorDictBase:
        """Leave the environment's specs as they are."""
        return output_spec

    def __repr__(self) -> str:
        source = "windows" if self._stored is None else type(self.storage).__name__
        return f"ActionChunkTransform(chunk_size={self.chunk_size}, from={source})"


def _is_named_window(tensordict: TensorDictBase, action: Tensor) -> bool:
    """Tell a single rollout ``[T]``, whose dimension is named, from a flat sample."""
    return action.ndim == 2 and tensordict.names[-1:] == ["time"]
