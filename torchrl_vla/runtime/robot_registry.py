"""Construction of robots and teleoperators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchrl_vla._internal.named_objects import (
    accepts,
    call_with_accepted,
    import_named,
    is_named_object,
)
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.errors import NamedObjectError
from torchrl_vla.runtime.known_robots import ROBOTS, TELEOPERATORS
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.schema import RobotDatasetMetadata


def make_robot(name: str, **options: object) -> Robot:
    """Make a robot by name, or with a function of the user's own.

    Args:
        name: one of ``ROBOTS``, or ``"module:function"``.
        options: that the maker declares by name.

    Raises:
        ValueError: there is no such robot or option.
        NamedObjectError: the function cannot be imported, or makes no robot.
        MissingExtraError: the robot's package is not installed.

    Examples:
        >>> make_robot("fake", num_joints=3).metadata.action_dim
        3
    """
    made = _maker("make_robot", name, ROBOTS, options)(**options)
    match made:
        case Robot():
            return made
    raise NamedObjectError(
        f"make_robot: expected a robot from {name!r}, with the members of "
        f"torchrl_vla.runtime.Robot, got {type(made).__name__}. Return the robot; "
        "check_robot says what it has to do."
    )


def make_teleoperator(
    name: str, metadata: RobotDatasetMetadata, **options: object
) -> Teleoperator:
    """Make a teleoperator by name, or with a function of the user's own.

    Args:
        name: one of ``TELEOPERATORS``, or ``"module:function"``, which is given
            ``metadata`` if it declares it.
        metadata: of the robot that it moves.
        options: that the maker declares by name.

    Raises:
        ValueError: there is no such teleoperator or option.
        NamedObjectError: the function cannot be imported, or makes no teleoperator.

    Examples:
        >>> robot = make_robot("fake")
        >>> make_teleoperator("fake", robot.metadata).read(None)
        tensor([0., 0.])
    """
    maker = _maker("make_teleoperator", name, TELEOPERATORS, options)
    made = call_with_accepted(maker, metadata=metadata, **options)
    match made:
        case Teleoperator():
            return made
    raise NamedObjectError(
        f"make_teleoperator: expected a teleoperator from {name!r}, with the members "
        f"of torchrl_vla.runtime.Teleoperator, got {type(made).__name__}. Return it."
    )


def _maker(
    caller: str, name: str, known: Mapping[str, str], options: Mapping[str, object]
) -> Callable[..., object]:
    if not is_named_object(name) and name not in known:
        raise ValueError(
            f"{caller}: expected one of {sorted(known)} or 'module:function', got "
            f"{name!r}.{did_you_mean(name, known)}"
        )
    maker = import_named(caller, known.get(name, name))
    unknown = sorted(option for option in options if not accepts(maker, option))
    if unknown:
        raise ValueError(
            f"{caller}: expected options that {name!r} declares by name, got "
            f"{unknown} of another. Leave them out, or correct their names."
        )
    return maker
