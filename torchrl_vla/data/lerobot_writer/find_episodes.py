"""Search for the episodes in datasets, replay buffers and rollouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer

from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    IS_INIT_KEY,
    MissingKeyError,
    SchemaError,
)

_CALLER = "write_lerobot"
_DONE_KEY: NestedKey = ("next", "done")
#: True = a step, False = padding by TorchRL's ``split_trajectories``.
_MASK_KEY: NestedKey = ("collector", "mask")

Read = Callable[[Tensor], TensorDictBase]


def find_episodes(
    data: Demonstrations | ReplayBuffer | TensorDictBase,
) -> tuple[list[Tensor], Read]:
    """Return the rows of each episode, and a function that reads rows ``[T]``.

    Raises:
        TypeError: ``data`` is none of the supported types.
        MissingKeyError: no entry marks the start of episodes.
        SchemaError: frames are missing or duplicated.
    """
    if isinstance(data, Demonstrations):
        buffer = data.replay_buffer(1)  # its transforms decode the images
        return _numbered(data.frames), buffer.__getitem__
    steps = data.storage[:] if isinstance(data, ReplayBuffer) else data
    if not isinstance(steps, TensorDictBase):
        raise TypeError(
            f"{_CALLER}: expected a dataset, a replay buffer of TensorDicts or a "
            f"TensorDict, got {type(steps).__name__}."
        )
    if not steps.numel() or not steps.batch_dims:
        raise SchemaError(
            f"{_CALLER}: expected steps [F] or a rollout [*B, T], got batch size "
            f"{list(steps.batch_size)}."
        )
    if EPISODE_KEY in steps and FRAME_KEY in steps:
        steps = steps.reshape(-1)
        return _numbered(steps), steps.__getitem__
    episodes = _cut(steps)
    flat = steps.reshape(-1)
    return episodes, flat.__getitem__


def _numbered(frames: TensorDictBase) -> list[Tensor]:
    """Return the rows of each episode, sorted by frame index."""
    episode, frame = (
        frames.get(key).as_subclass(Tensor).reshape(-1).cpu()
        for key in (EPISODE_KEY, FRAME_KEY)
    )
    order = frame.argsort(stable=True)
    order = order[episode[order].argsort(stable=True)]
    numbers, lengths = episode[order].unique_consecutive(return_counts=True)
    episodes = list(order.split(lengths.tolist()))
    for number, rows in zip(numbers.tolist(), episodes, strict=True):
        found = frame[rows]
        if not torch.equal(found, torch.arange(len(rows))):
            place = int((found != torch.arange(len(rows))).nonzero()[0])
            raise SchemaError(
                f"{_CALLER}: expected the frames 0 to {len(rows) - 1} of episode "
                f"{number} once each, got frame_index {int(found[place])} in place "
                f"of {place}. Leave the episode out, or renumber its frames."
            )
    return episodes


def _cut(steps: TensorDictBase) -> list[Tensor]:
    """Return the rows of each episode in a flattened rollout ``[*B, T]``."""
    keys = (_DONE_KEY, IS_INIT_KEY)
    done, is_init = (_flag(steps, key) for key in keys)
    if done is None and is_init is None:
        raise MissingKeyError(
            f"{_CALLER}: expected {EPISODE_KEY!r} and {FRAME_KEY!r}, or a rollout "
            f"[*B, T] with one of {list(keys)}, got "
            f"{sorted(map(str, steps.keys(True, True)))}. Add one of these entries."
        )
    length = steps.batch_size[-1]
    begins = torch.zeros(steps.numel() // length, length, dtype=torch.bool)
    begins[:, 0] = True
    if done is not None:
        begins[:, 1:] |= done[:, :-1]
    if is_init is not None:
        begins |= is_init
    mask = _flag(steps, _MASK_KEY)
    rows = torch.arange(steps.numel())
    number = begins.flatten().cumsum(0)
    if mask is not None:
        rows, number = rows[mask.flatten()], number[mask.flatten()]
    lengths = number.unique_consecutive(return_counts=True)[1]
    return list(rows.split(lengths.tolist()))


def _flag(steps: TensorDictBase, key: NestedKey) -> Tensor | None:
    """Return a bool entry as ``[N, T]``, or None if it is missing."""
    value = steps.get(key, None)
    return None if value is None else value.reshape(-1, steps.batch_size[-1]).cpu()
