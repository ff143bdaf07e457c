"""Settings of the safety gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torchrl_vla._internal.option_names import OnViolation


@dataclass(frozen=True)
class GateOptions:
    """Say what a safety gate lets pass, and what it does with the rest.

    Limits of the actions themselves come from the robot's metadata.

    Args:
        on_violation: what becomes of an illegal action: ``"refuse"`` = raise;
            ``"clip"`` = the nearest legal one, and hold where it is not finite;
            ``"hold"`` = the last one again.
        max_step: largest change from one action to the next, in the actions' units; one
            number for all dimensions or one each. None = no limit.
        max_velocity: largest change per second, likewise.
        max_observation_age_s: an action that answers an older observation is stale.
        max_action_age_s: an action of a chunk that was planned from an older
            observation is stale.
        watchdog_s: longest time without a fresh legal action: the robot holds that
            long, then it is stopped.
        dry_run: True = everything is checked and nothing reaches the robot.

    Raises:
        ValueError: a number is not positive, or there is no such ``on_violation``.

    Examples:
        >>> GateOptions(max_step=0.1, on_violation="clip").watchdog_s
        1.0
    """

    on_violation: OnViolation = "hold"
    max_step: float | tuple[float, ...] | None = None
    max_velocity: float | tuple[float, ...] | None = None
    max_observation_age_s: float = 0.5
    max_action_age_s: float = 3.0
    watchdog_s: float = 1.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.on_violation not in get_args(OnViolation):
            raise ValueError(
                f"GateOptions: expected on_violation of {list(get_args(OnViolation))}, "
                f"got {self.on_violation!r}."
            )
        for name in ("max_observation_age_s", "max_action_age_s", "watchdog_s"):
            value = vars(self)[name]
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"GateOptions: expected a positive number at argument {name!r}, "
                    f"got {value!r}. Nothing switches this check off."
                )
