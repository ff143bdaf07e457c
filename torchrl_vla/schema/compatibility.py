"""Differences between two robots' metadata that forbid mixing their data."""

from __future__ import annotations

import importlib
from math import isclose
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchrl_vla.errors import MetadataError

if TYPE_CHECKING:
    from torchrl_vla.schema.metadata import RobotDatasetMetadata

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
}

#: Two clocks within one percent are the same rate (30 Hz and 29.97 Hz are).
RATE_TOLERANCE = 0.01


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
        ours, theirs = getattr(first, name), getattr(second, name)
        if _declared(ours) and _declared(theirs) and ours != theirs:
            found.append(f"{name}: {ours!r} against {theirs!r} ({consequence})")
    ours, theirs = first.control_frequency_hz, second.control_frequency_hz
    if ours and theirs and not isclose(ours, theirs, rel_tol=RATE_TOLERANCE):
        found.append(
            f"control_frequency_hz: {ours} against {theirs} (motions at another speed)"
        )
    return found


def conversions() -> ModuleType:
    """Return the package that makes conversions, which is a layer above this one."""
    return importlib.import_module("torchrl_vla.transforms.conversions")


def way_out(first: RobotDatasetMetadata, second: RobotDatasetMetadata) -> str:
    """Return what to do about the differences between two records."""
    if conversions().ConversionPlan(second, first).problems:
        return "Convert one side's data, or correct its metadata."
    return (
        "All of them have a conversion: append the transform "
        f"theirs.conversion_to(ours) to the data or the environment of "
        f"{second.dataset_id!r}, where `ours` is the metadata of {first.dataset_id!r}. "
        "Or correct the metadata that are wrong."
    )


def _declared(value: Any) -> bool:
    return value is not None and value != ()
