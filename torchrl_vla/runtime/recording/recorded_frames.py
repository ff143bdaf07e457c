"""Frames of a run as a dataset holds them."""

from __future__ import annotations

from tensordict import NestedKey, TensorDict, TensorDictBase

from torchrl_vla.runtime.robot_env import IS_HELD_KEY
from torchrl_vla.schema import (
    ACTION_KEY,
    INSTRUCTION_KEY,
    IS_INTERVENTION_KEY,
    OBSERVATION_KEY,
    PREVIOUS_ACTION_KEY,
    SUCCESS_KEY,
)

_OUTCOMES = ("reward", "done", "terminated", "truncated", SUCCESS_KEY)
#: Entries beside the schema's that a recording holds where a run has them.
EXTRA_KEYS: tuple[NestedKey, ...] = (IS_INTERVENTION_KEY, IS_HELD_KEY)


def recorded_frame(step: TensorDictBase) -> TensorDict:
    """Return the frame of one step of a robot.

    Its ``action`` is what reached the robot, not what the policy asked for.

    **Reads** a step ``[1]`` of :class:`~torchrl_vla.runtime.RobotEnv` with its
    ``next``.

    **Writes** a frame ``[1]``: observation, instruction, ``action``, outcomes and,
    where the step has them, ``is_intervention`` and ``is_held``.

    Examples:
        >>> import torch
        >>> step = TensorDict(
        ...     {
        ...         "observation": {"state": torch.zeros(1, 2)},
        ...         "language_instruction": torch.zeros(1, dtype=torch.int64),
        ...         "action": torch.full((1, 2), 9.0),
        ...         "next": {"previous_action": torch.ones(1, 2)},
        ...     },
        ...     [1],
        ... )
        >>> recorded_frame(step)["action"]
        tensor([[1., 1.]])
    """
    kept = [OBSERVATION_KEY, INSTRUCTION_KEY, *EXTRA_KEYS]
    kept += [("next", name) for name in _OUTCOMES]
    frame = step.select(*kept, strict=False)
    return frame.set(ACTION_KEY, step.get(("next", PREVIOUS_ACTION_KEY)))
