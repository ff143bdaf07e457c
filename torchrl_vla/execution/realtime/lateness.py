"""Reactions to a policy that has not answered in time."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_vla.execution.action_reference import MAKE_ABSOLUTE
from torchrl_vla.schema import RobotDatasetMetadata

#: What a step does for which no action is left.
Reaction = Literal["wait", "hold", "repeat", "zero", "stop"]


@dataclass(frozen=True)
class Lateness:
    """Say what an executor does when no action is left and the policy is still busy.

    ``reaction`` is one of

    - ``"wait"``: wait for the answer, as a simulator can, then stop at ``timeout_s``;
    - ``"hold"``: repeat the last action, for absolute targets: the robot stands still;
    - ``"repeat"``: repeat the last action whatever it is, so that deltas and velocities
      move on;
    - ``"zero"``: 0 in the dimensions that are deltas or velocities, the last action in
      the others;
    - ``"stop"``: raise. No action is written.

    On the first step of an episode no action has been executed: ``"hold"`` takes
    ``position`` in its place, ``"repeat"`` stops.

    Args:
        reaction: see above.
        timeout_s: the longest that one step waits: the first step of an episode under
            every reaction, any step under ``"wait"``; None = as long as it takes. All
            other steps never wait.
        max_late_steps: stop when more steps than these in a row had no answer; None =
            never.
        position: float ``[*B, A]``, the robot's position in the units of its actions.

    Raises:
        ValueError: an argument is none of the above.

    Examples:
        >>> Lateness("hold", timeout_s=0.2, max_late_steps=15).reaction
        'hold'
    """

    reaction: Reaction = "wait"
    timeout_s: float | None = None
    max_late_steps: int | None = None
    position: NestedKey | None = None

    def __post_init__(self) -> None:
        if self.reaction not in get_args(Reaction):
            raise ValueError(
                f"Lateness: expected a reaction of {list(get_args(Reaction))}, got "
                f"{self.reaction!r}."
            )
        timeout, most = self.timeout_s, self.max_late_steps
        if timeout is not None and not (isfinite(timeout) and timeout >= 0):
            raise ValueError(
                f"Lateness: expected timeout_s >= 0, in seconds, got {timeout}. None "
                "= wait as long as it takes."
            )
        if most is not None and most < 0:
            raise ValueError(f"Lateness: expected max_late_steps >= 0, got {most}.")
        if self.reaction in ("wait", "stop") and most is not None:
            raise ValueError(
                "Lateness: expected max_late_steps=None for reaction "
                f"{self.reaction!r}, which has no late steps, got {most}."
            )

    def zeroed(
        self,
        caller: str,
        action_reference: str,
        metadata: RobotDatasetMetadata | None,
    ) -> Tensor | None:
        """Return the dimensions that a late step sets to 0, bool ``[A]`` or ``[1]``.

        A velocity is a dimension whose unit is per second (``"rad/s"``).

        Args:
            caller: the executor; opens the error message.
            action_reference: of the executor, for all dimensions.
            metadata: of the policy; where they declare references and units, these
                count.

        Raises:
            ValueError: the actions cannot be held, or there is nothing to set to 0.
        """
        if self.reaction == "hold" and action_reference == "delta":
            raise ValueError(
                f"{caller}: expected when_late 'wait', 'repeat', 'zero' or 'stop' for "
                "actions of reference 'delta', got 'hold': a delta that is held moves "
                f"on. {MAKE_ABSOLUTE}"
            )
        if self.reaction != "zero":
            return None
        units = None if metadata is None else metadata.action_units
        declared = None if metadata is None else metadata.action_reference
        references = (action_reference,) if declared is None else declared
        zeroed = torch.tensor([reference == "delta" for reference in references])
        if units is not None:
            zeroed = zeroed | torch.tensor([unit.endswith("/s") for unit in units])
        if not zeroed.any():
            raise ValueError(
                f"{caller}: expected deltas or velocities (a unit such as 'rad/s') for "
                f"when_late 'zero', got reference {action_reference!r} and units "
                f"{units}: a robot that is sent an absolute 0 moves there. Use 'hold'."
            )
        return zeroed
