"""Demonstrations as decisions of an off-policy algorithm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import SamplerWithoutReplacement

from torchrl_vla.policies import VLAWrapperBase
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    EPISODE_KEY,
    EXECUTED_STEPS_KEY,
    IS_EXECUTED_KEY,
    SUCCESS_KEY,
)
from torchrl_vla.spaces import ModelSpace

_BATCH = 256


def demonstration_decisions(
    policy: VLAWrapperBase,
    space: ModelSpace | None,
    demonstrations: Demonstrations,
    replan_interval: int | None = None,
) -> Iterator[TensorDict]:
    """Yield the decisions that begin at each frame, in the policy's space.

    A decision executes the next actions of its episode, up to ``replan_interval``. One
    that reaches the episode's end is terminated; it is paid 1 if the dataset says that
    it succeeded, or says nothing: a demonstration shows how it is done.

    **Writes** ``[N]`` decisions as ``select_decisions`` does, with what the policy
    reads at the root and under ``next``.

    Args:
        policy: gives ``H`` and what is read.
        space: of the policy; None = robot space.
        demonstrations: complete episodes.
        replan_interval: actions that are executed per decision; None = all.
    """
    chunk_size = policy.chunk_size
    executed = replan_interval or chunk_size
    sampler = SamplerWithoutReplacement(drop_last=False, shuffle=False)
    buffer = demonstrations.replay_buffer(
        _BATCH,
        transform=make_training_transform(policy, space, demonstrations.storage),
        sampler=sampler,
    )
    frames = len(demonstrations)
    parts = [buffer.sample() for _ in range(-(-frames // _BATCH))]
    data: TensorDictBase = torch.cat(
        [part.select(*_read(policy), *_FRAME, strict=False) for part in parts]
    )[:frames]
    episode = data[EPISODE_KEY].reshape(-1)
    rows = torch.arange(frames)
    begins = torch.cat([torch.tensor([True]), episode[1:] != episode[:-1]])
    last = torch.cat([rows[begins][1:] - 1, torch.tensor([frames - 1])])
    last = last[begins.long().cumsum(0) - 1]  # row of the episode's last frame
    steps = (last - rows + 1).clamp_max(executed)
    ended = rows + steps > last
    succeeded = data.get(("next", SUCCESS_KEY), None)
    paid = ended if succeeded is None else ended & succeeded.reshape(-1)[last]
    observations = data.select(*policy.in_keys)
    following = observations[torch.minimum(rows + steps, last)]
    following = TensorDict(following.to_dict(), batch_size=[frames])
    following.update(
        {
            "reward": paid.float().unsqueeze(-1),
            "done": ended.unsqueeze(-1),
            "terminated": ended.unsqueeze(-1),
            EXECUTED_STEPS_KEY: steps.unsqueeze(-1),
            IS_EXECUTED_KEY: torch.arange(chunk_size) < steps.unsqueeze(-1),
        }
    )
    decisions = TensorDict(observations.to_dict(), batch_size=[frames])
    decisions.set(ACTION_CHUNK_KEY, data[ACTION_CHUNK_KEY])
    decisions.set("next", following)
    yield from decisions.split(_BATCH)


_FRAME = (ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY, EPISODE_KEY, ("next", SUCCESS_KEY))


def _read(policy: VLAWrapperBase) -> list:
    return list(policy.in_keys)
