"""Mark of the space, model or robot, that a policy reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from torchrl_vla.errors import SpaceError

_ATTRIBUTE = "policy_space"


@dataclass(frozen=True)
class PolicySpace:
    """Name the space of a policy's states and actions.

    Args:
        kind: ``"robot"`` = physical units, ``"model"`` = normalized numbers.
        fingerprint: of the ``ModelSpace`` that the policy was trained in; None in robot
            space.
        mode: how that space normalizes, e.g. ``"mean_std"``; None in robot space.

    Raises:
        ValueError: a model space without fingerprint, or a robot space with one.
    """

    kind: Literal["model", "robot"]
    fingerprint: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "model") != (self.fingerprint is not None):
            raise ValueError(
                "PolicySpace: expected a fingerprint with kind='model' and none with "
                f"kind='robot', got kind={self.kind!r} and {self.fingerprint!r}."
            )

    def __str__(self) -> str:
        """Describe the space in an error message."""
        if self.kind == "robot":
            return "robot space"
        return f"model space {self.fingerprint} ({self.mode})"


#: The space of physical units.
ROBOT_SPACE = PolicySpace("robot")


def space_of(policy: nn.Module) -> PolicySpace | None:
    """Return the space that a policy is marked with; None = it was never marked."""
    return getattr(policy, _ATTRIBUTE, None)


def mark_space(policy: nn.Module, space: PolicySpace) -> None:
    """Mark a policy with the space that it reads and writes.

    Args:
        policy: any module; of a compiled one the module inside is marked.
        space: of its states and actions.

    Raises:
        SpaceError: the policy is marked with another space.
    """
    known = space_of(policy)
    if known not in (None, space):
        raise SpaceError(
            f"{type(policy).__name__}: expected {known}, which the policy was trained "
            f"in, got {space}. Use the space that load_checkpoint returned beside it, "
            f"or set policy.{_ATTRIBUTE} = None to train it anew in the other one."
        )
    setattr(getattr(policy, "_orig_mod", policy), _ATTRIBUTE, space)


def check_robot_space(caller: str, policy: nn.Module) -> None:
    """Refuse a policy of model space where robot actions are expected.

    Args:
        caller: opens the error message.
        policy: whose actions go to a robot.

    Raises:
        SpaceError: the policy is marked with a model space.
    """
    space = space_of(policy)
    if space is not None and space.kind == "model":
        raise SpaceError(
            f"{caller}: expected a policy in robot space, got {type(policy).__name__} "
            f"in {space}, whose actions are normalized. Make the executor with its "
            "space, space.executor(policy, ...), which denormalizes them. No action "
            "was sent."
        )
