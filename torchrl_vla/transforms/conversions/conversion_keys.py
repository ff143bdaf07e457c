"""Record of the keys that a conversion reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    EXPERT_ACTION_KEY,
    STATE_KEY,
)


@dataclass(frozen=True)
class ConversionKeys:
    """Name the entries that :class:`RobotConversion` converts.

    Args:
        action: one action per frame.
        expert_action: what an expert meant to do.
        chunk: the next actions.
        is_pad: which of them are padded.
        state: proprioception.
    """

    action: NestedKey = ACTION_KEY
    expert_action: NestedKey = EXPERT_ACTION_KEY
    chunk: NestedKey = ACTION_CHUNK_KEY
    is_pad: NestedKey = ACTION_IS_PAD_KEY
    state: NestedKey = STATE_KEY
