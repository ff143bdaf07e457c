"""Record of the keys of an action guard."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, unravel_key

from torchrl_vla.schema import IS_INIT_KEY


@dataclass(frozen=True)
class GuardKeys:
    """Name the entries that an action guard reads and writes.

    Args:
        action: the chunk ``[*B, H, A]`` or action ``[*B, A]``; None =
            ``"action_chunk"`` or ``"action"``, whichever of them the policy writes.
        raw: where the policy's actions are kept as they were; None = they are not.
        tag: text ``[*B]``, the embodiment tag that each must have; None = not compared.
        is_init: bool ``[*B, 1]``, True = first step of an episode.
        state: float ``[*B, A]``, the robot's position, which the first action (of an
            episode; of a chunk, around a policy of chunks) is compared with for
            ``max_step``; None = that action is free.
    """

    action: NestedKey | None = None
    raw: NestedKey | None = None
    tag: NestedKey | None = None
    is_init: NestedKey = IS_INIT_KEY
    state: NestedKey | None = None

    def __post_init__(self) -> None:
        for name, key in vars(self).copy().items():
            if key is not None:
                object.__setattr__(self, name, unravel_key(key))
