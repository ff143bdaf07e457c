"""Differences between two robots' metadata that forbid mixing their data."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from math import isclose
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchrl_vla.errors import IncompatibleMetadataError, MetadataError

if TYPE_CHECKING:
    from torchrl_vla.schema.conventions import RotationConvention
    from torchrl_vla.schema.metadata import RobotDatasetMetadata

#: What two records describe, e.g. the policy and the environment.
Sides = tuple[str, str]

#: Compared for equality; the text says what goes wrong when they differ.
_EXACT = {
    "embodiment_id": "another robot",
    "action_dim": "actions of another size",
    "action_names": "dimensions in another order",
    "action_units": "numbers off by the ratio of the units",
    "action_reference": "targets read as steps, or steps as targets",
    "action_space": "joint values read as poses, or the reverse",
    "rotations": "rotations in another layout",
    "grippers": "a gripper that opens when told to close",
    "state_dim": "states of another size",
    "state_names": "dimensions in another order",
    "state_units": "numbers off by the ratio of the units",
    "cameras": "images in another place",
    "image_sizes": "objects of another size, or channels read as rows",
    "image_orientation": "images mirrored or upside down",
}

#: Two clocks within one percent are the same rate (30 Hz and 29.97 Hz are).
RATE_TOLERANCE = 0.01

#: Part of the robot's range by which declared bounds may pass it; and measured actions,
#: which hold noise and outliers that the robot clips. Degrees for radians are 57 times.
_DECLARED_SLACK, _MEASURED_SLACK = 0.05, 1.0


def differences(first: RobotDatasetMetadata, second: RobotDatasetMetadata) -> list[str]:
    """Return one line per difference; undeclared fields are passed over.

    Raises:
        MetadataError: ``second`` is no metadata record.
    """
    if type(second) is not type(first):
        raise MetadataError(
            f"RobotDatasetMetadata {first.dataset_id!r}: expected another record to "
            f"compare or convert with, got {type(second).__name__}. Pass the metadata "
            "of the dataset, environment or policy."
        )
    found = []
    for name, consequence in _EXACT.items():
        ours, theirs = vars(first)[name], vars(second)[name]
        if name == "rotations":
            ours, theirs = _with_common_frames(ours, theirs)
        if _declared(ours) and _declared(theirs) and ours != theirs:
            found.append(f"{name}: {ours!r} against {theirs!r} ({consequence})")
    ours, theirs = first.control_frequency_hz, second.control_frequency_hz
    if ours and theirs and not isclose(ours, theirs, rel_tol=RATE_TOLERANCE):
        found.append(
            f"control_frequency_hz: {ours} against {theirs} (motions at another speed)"
        )
    return found


def _with_common_frames(
    ours: tuple[RotationConvention, ...], theirs: tuple[RotationConvention, ...]
) -> tuple[tuple[RotationConvention, ...], tuple[RotationConvention, ...]]:
    """Leave out a frame that one side does not declare: it is passed over."""
    if len(ours) != len(theirs):
        return ours, theirs
    declared = [
        None not in (a.frame, b.frame) for a, b in zip(ours, theirs, strict=True)
    ]
    first, second = (
        tuple(
            r if kept else replace(r, frame=None)
            for r, kept in zip(side, declared, strict=True)
        )
        for side in (ours, theirs)
    )
    return first, second


def acting_differences(
    trained: RobotDatasetMetadata, robot: RobotDatasetMetadata
) -> list[str]:
    """Return one line per reason why a policy's actions are wrong for a robot.

    As :func:`differences`, and the robot's limits have to hold the actions of the
    training. Training data that declare neither units nor a reference, as LeRobot's,
    name robots and dimensions freely: there names without any in common say nothing.

    Args:
        trained: of the policy's training data.
        robot: of the environment or robot.
    """
    named = trained
    if trained.action_units is None and trained.action_reference is None:
        named = replace(
            trained,
            embodiment_id=None,
            action_names=_known(trained.action_names, robot.action_names),
            state_names=_known(trained.state_names, robot.state_names),
        )
    return [*differences(named, robot), *_beyond_limits(trained, robot)]


def _known(
    ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Return our names if some of them are among theirs."""
    return ours if set(ours or ()) & set(theirs or ()) else None


def _beyond_limits(
    trained: RobotDatasetMetadata, robot: RobotDatasetMetadata
) -> list[str]:
    if robot.action_low is None or robot.action_high is None:
        return []
    if trained.action_dim != robot.action_dim:
        return []
    source, part = "declared", _DECLARED_SLACK
    low, high = trained.action_low, trained.action_high
    if (low is None or high is None) and trained.action_statistics is not None:
        source, part = "98 % of the training's actions", _MEASURED_SLACK
        low = tuple(trained.action_statistics.q01.tolist())
        high = tuple(trained.action_statistics.q99.tolist())
    if low is None or high is None:
        return []
    limits = list(zip(robot.action_low, robot.action_high, strict=True))
    slack = [part * (top - bottom) for bottom, top in limits]
    found = []
    for name, ours, theirs, sign in (
        ("action_low", low, robot.action_low, -1),
        ("action_high", high, robot.action_high, 1),
    ):
        beyond = [
            i
            for i, (a, b, room) in enumerate(zip(ours, theirs, slack, strict=True))
            if sign * (a - b) > room
        ]
        if beyond:
            found.append(
                f"{name}: {[ours[i] for i in beyond]} ({source}) against "
                f"{[theirs[i] for i in beyond]} in dimensions {beyond} (actions beyond "
                "the robot's limits, as of other units)"
            )
    return found


def conversions() -> ModuleType:
    """Return the package that makes conversions, which is a layer above this one."""
    return importlib.import_module("torchrl_vla.transforms.conversions")


def way_out(
    first: RobotDatasetMetadata,
    second: RobotDatasetMetadata,
    found: Sequence[str],
    sides: Sides,
) -> str:
    """Return what to do about the differences between two records."""
    names = {line.partition(":")[0] for line in found}
    if names == {"image_sizes"}:
        return (
            "Render or record images of the first size (image_size=, --image-size), or "
            "append ResizeWithPad to what has the others."
        )
    if names == {"image_orientation"}:
        return (
            "Make the environment with the orientation of the training, or correct the "
            "metadata."
        )
    has_conversion = names.isdisjoint(
        {"image_sizes", "image_orientation", "action_low", "action_high"}
    )
    if not has_conversion or conversions().ConversionPlan(second, first).problems:
        return "Convert one side's data, or correct its metadata."
    return (
        "All of them have a conversion: append the transform "
        f"theirs.conversion_to(ours) to {sides[1]}, where `ours` is the metadata of "
        f"{sides[0]} (evaluate --convert, train --convert-to). Or correct the metadata "
        "that are wrong."
    )


def _declared(value: Any) -> bool:
    return value is not None and value != ()


def refuse_differences(
    caller: str,
    ours: RobotDatasetMetadata,
    theirs: RobotDatasetMetadata,
    found: Sequence[str],
    sides: Sides,
) -> None:
    """Raise if there are differences.

    Args:
        caller: opens the error message.
        ours: what is expected.
        theirs: what was found.
        found: one line per difference.
        sides: what ``ours`` and ``theirs`` describe; two records may have one name.

    Raises:
        IncompatibleMetadataError: lists every difference, with both values.
    """
    if found:
        first, second = sides
        raise IncompatibleMetadataError(
            f"{caller}: expected {second} ({theirs.dataset_id!r}) to be compatible "
            f"with {first} ({ours.dataset_id!r}), got {len(found)} difference(s), "
            f"{first} against {second}:\n  - "
            + "\n  - ".join(found)
            + f"\n{way_out(ours, theirs, found, sides)}"
        )
