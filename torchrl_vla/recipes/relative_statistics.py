"""Statistics of a dataset's actions relative to the state of an earlier frame."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.data import Demonstrations
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IS_LABELED_KEY,
    STATE_KEY,
    FeatureStatistics,
)


def relative_action_statistics(
    dataset: Demonstrations, mask: list[bool], steps: range
) -> FeatureStatistics:
    """Compute exact statistics of all chunks of actions minus the current state.

    They are those of the targets of a policy with ``use_relative_actions``, without
    the padding past an episode's end.

    Args:
        dataset: with actions ``[F, A]`` and states ``[F, S]``, ``S >= A``.
        mask: ``A`` of them, True = relative to the state's number of the same index.
        steps: from the current frame to each target.
    """
    frames = dataset.frames
    actions, states = _plain(frames.get(ACTION_KEY)), _plain(frames.get(STATE_KEY))
    index = torch.arange(len(actions))
    pairs = [_pairs(dataset, index, step) for step in steps]
    now = torch.cat([index for index, _ in pairs])
    then = torch.cat([index for _, index in pairs])
    # One dimension at a time: all chunks of a large dataset would not fit in memory.
    parts = []
    for dim, is_relative in enumerate(mask):
        values = actions[then, dim].double()
        if is_relative:
            values = values - states[now, dim].double()
        parts.append(FeatureStatistics.from_samples(values[:, None]).to_dict())
    names = ("mean", "std", "min", "max", "q01", "q99")
    joined = {name: [part[name][0] for part in parts] for name in names}
    return FeatureStatistics.from_dict({**joined, "count": len(now)})


def _pairs(dataset: Demonstrations, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the frames that have one at ``step`` from them, and these others."""
    frames = dataset.frames
    now = index[(index + step >= 0) & (index + step < len(index))]
    then = now + step
    episode, frame = _plain(frames.get(EPISODE_KEY)), _plain(frames.get(FRAME_KEY))
    fits = (episode[now] == episode[then]) & (frame[now] + step == frame[then])
    is_labeled = frames.get(IS_LABELED_KEY, None)
    if is_labeled is not None:
        fits &= _plain(is_labeled).reshape(len(index))[then]
    return now[fits], then[fits]


def _plain(value: Tensor) -> Tensor:
    """Return the numbers in memory of a memory-mapped tensor."""
    return value.as_subclass(Tensor)
