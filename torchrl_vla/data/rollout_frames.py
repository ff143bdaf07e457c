"""Conversion of a rollout into the frames of a dataset."""

from __future__ import annotations

from typing import TypedDict

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor

from torchrl_vla.data.frame_checks import check_finite_frames
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    EPISODE_SEED_KEY,
    EXPERT_ACTION_KEY,
    FRAME_KEY,
    INSTRUCTION_KEY,
    IS_INIT_KEY,
    IS_INTERVENTION_KEY,
    IS_LABELED_KEY,
    IS_WAITING_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    FeatureStatistics,
    InstructionTable,
    MissingKeyError,
    SchemaError,
    check_images_are_fresh,
    instruction_texts,
    is_text,
)

_OUTCOMES = ("reward", "done", "terminated", "truncated", SUCCESS_KEY)
_INTERVENTIONS = (IS_INTERVENTION_KEY, IS_LABELED_KEY)


class FrameStatistics(TypedDict, total=False):
    """Statistics fields of :class:`~torchrl_vla.schema.RobotDatasetMetadata`."""

    action_statistics: FeatureStatistics
    state_statistics: FeatureStatistics


def frame_columns(
    steps: TensorDictBase, instructions: InstructionTable, caller: str
) -> dict[NestedKey, Tensor]:
    """Return the entries of steps that a dataset stores, except the indices.

    The stored ``action`` is the target: ``expert_action`` where an expert writes one,
    whatever action was executed, else ``action``.

    Args:
        steps: ``[N]``, with their ``next``.
        instructions: encodes texts as ids; new texts are added.
        caller: name that starts error messages.

    Raises:
        MissingKeyError: the steps lack an entry that a dataset holds.
    """
    needed = [OBSERVATION_KEY, INSTRUCTION_KEY, *(("next", key) for key in _OUTCOMES)]
    missing = [key for key in needed if steps.get(key, None) is None]
    if missing:
        raise MissingKeyError(
            f"{caller}: expected the environment to write {needed}, got none of "
            f"{missing}. Add them to its observations or its done flags."
        )
    target = steps.get(EXPERT_ACTION_KEY, None)
    instruction = steps.get(INSTRUCTION_KEY)
    if is_text(instruction):
        texts = instruction_texts(instruction)
        instruction = instructions.encode(texts * (steps.numel() // len(texts)))
    columns: dict[NestedKey, Tensor] = {
        unravel_key((OBSERVATION_KEY, key)): value
        for key, value in steps.get(OBSERVATION_KEY).items(True, True)
    }
    columns[INSTRUCTION_KEY] = instruction
    columns[ACTION_KEY] = steps.get(ACTION_KEY) if target is None else target
    for key in _INTERVENTIONS:
        if (flag := steps.get(key, None)) is not None:
            columns[key] = flag
    for key in _OUTCOMES:
        columns["next", key] = steps.get(("next", key))
    return columns


def frames_of_rollout(
    rollout: TensorDictBase, instructions: InstructionTable
) -> TensorDict:
    """Turn a rollout into the frames of its episodes, ordered by env index.

    An episode starts where ``is_init`` is True, after a ``done``, and at the first step
    of a rollout without ``is_init``. Steps of an episode that started before the
    rollout are left out, because their frame numbers are unknown. An episode that the
    rollout truncates is kept, without a ``done``. Steps with ``is_waiting`` are no
    frames.

    **Reads** a rollout ``[*B, T]`` of steps: ``observation``, ``language_instruction``
    (ids or text), ``action``, ``("next", reward | done | terminated | truncated |
    success)``; where present, ``expert_action``, ``is_intervention``, ``is_labeled``,
    ``is_init``, ``is_waiting`` and ``episode_seed``.

    **Writes** frames ``[F]`` on the CPU, with ``episode_index`` and ``frame_index``
    int64 ``[F]``, counted from 0.

    Args:
        rollout: time is the last batch dimension.
        instructions: encodes texts as ids; new texts are added.

    Raises:
        MissingKeyError: the rollout lacks an entry that a dataset holds.
        SchemaError: it has no time dimension, contains no start of an episode, or an
            image was rendered at an earlier step.
    """
    if not rollout.batch_size:
        raise SchemaError("frames_of_rollout: expected a rollout [*B, T], got a step.")
    steps, n_time = rollout.reshape(-1), rollout.batch_size[-1]
    columns = frame_columns(steps, instructions, "frames_of_rollout")
    done = columns["next", "done"].reshape(-1, n_time)
    begins = torch.zeros_like(done)
    begins[:, 1:] = done[:, :-1]
    is_init = steps.get(IS_INIT_KEY, None)
    if is_init is None:
        begins[:, 0] = True
    else:
        begins |= is_init.reshape(begins.shape)
    number = begins.long().cumsum(-1)
    keep = number > 0
    waiting = steps.get(IS_WAITING_KEY, None)
    if waiting is not None:
        keep &= ~waiting.reshape(keep.shape)
    # Episodes are numbered by env index first, then by time.
    number = number + (number[:, -1].cumsum(0) - number[:, -1]).unsqueeze(-1)
    rows = keep.flatten().nonzero().squeeze(-1)
    if not len(rows):
        raise SchemaError(
            "frames_of_rollout: expected the start of an episode, got "
            f"{list(done.shape)} steps without one. Collect longer rollouts, or reset "
            "at each."
        )
    check_images_are_fresh("frames_of_rollout", steps[rows])
    _, episode, counts = number.flatten()[rows].unique_consecutive(
        return_inverse=True, return_counts=True
    )
    first = counts.cumsum(0) - counts
    if (seed := steps.get(EPISODE_SEED_KEY, None)) is not None:
        columns[EPISODE_SEED_KEY] = seed.reshape(-1)
    frames = TensorDict({}, [len(rows)])
    for key, value in columns.items():
        frames.set(key, value[rows].cpu())
    frames.set(EPISODE_KEY, episode.cpu())
    frame = torch.arange(len(rows), device=rows.device) - first[episode]
    return frames.set(FRAME_KEY, frame.cpu())


def frame_statistics(
    frames: TensorDictBase, caller: str = "frame_statistics"
) -> FrameStatistics:
    """Return the statistics of actions and states, as fields of the metadata.

    Action statistics describe the targets: frames without a label are left out, unless
    no frame has one.

    Raises:
        SchemaError: a number is not finite; names its episode, frame and dimension.
    """
    check_finite_frames(caller, frames)
    action, labels = frames.get(ACTION_KEY), frames.get(IS_LABELED_KEY, None)
    if labels is not None and labels.any():
        action = action[labels.reshape(-1)]
    found: FrameStatistics = {
        "action_statistics": FeatureStatistics.from_samples(action)
    }
    if STATE_KEY in frames.keys(True):
        state = frames.get(STATE_KEY)
        found["state_statistics"] = FeatureStatistics.from_samples(state)
    return found
