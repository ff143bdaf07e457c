"""Feature dictionaries of LeRobot's drivers, in the terms of metadata."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from torchrl_vla.errors import IncompatibleMetadataError, SettingsError
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata, SchemaError

#: What LeRobot's drivers answer and take: numbers and arrays by name; or their types.
Answer = Mapping[str, Any]


class Device(Protocol):
    """What LeRobot's robots and teleoperators have in common."""

    @property
    def action_features(self) -> Answer:
        """Name of each number of an action, to its type."""
        ...

    @property
    def is_connected(self) -> bool:
        """True = it may be used."""
        ...

    @property
    def is_calibrated(self) -> bool:
        """True = its numbers mean what they are called."""
        ...

    connect: Callable[..., None]

    def disconnect(self) -> None:
        """Close the connection."""
        ...


def connect_device(caller: str, device: Device, calibrate: bool) -> None:
    """Connect a device that is calibrated, or may be.

    Args:
        caller: opens the error message.
        device: of LeRobot.
        calibrate: True = let its driver calibrate it, for which it may ask at the
            terminal.

    Raises:
        ExecutionError: it is not calibrated; it is disconnected again.
    """
    # Drivers without a calibration, such as gamepads, leave the argument out.
    takes = "calibrate" in inspect.signature(device.connect).parameters
    device.connect(**({"calibrate": calibrate} if takes else {}))
    if not device.is_calibrated:
        device.disconnect()
        raise ExecutionError(
            f"{caller}: expected a calibrated {type(device).__name__}, got one that "
            "is not. Run LeRobot's lerobot-calibrate for it, or pass calibrate=True. "
            "It is disconnected, and no action was sent."
        )


def check_names(
    caller: str, feature: str, declared: Sequence[str] | None, features: Sequence[str]
) -> None:
    """Refuse names in metadata that are not the driver's, in the driver's order.

    Args:
        caller: opens the error message.
        feature: ``"action"`` or ``"state"``.
        declared: by the metadata.
        features: the driver's.

    Raises:
        IncompatibleMetadataError: they differ.
    """
    got = tuple(declared or ())
    if got == tuple(features):
        return
    way = "another order" if sorted(got) == sorted(features) else "other names"
    raise IncompatibleMetadataError(
        f"{caller}: expected {feature}_names of the driver, {list(features)}, got "
        f"{list(got)} from the metadata: {way}. A joint would be driven by the number "
        f"of another. Declare the driver's order in {feature}_names, and convert the "
        "policy's data with RobotDatasetMetadata.conversion_to. Nothing is connected."
    )


def numbers_of(features: Answer) -> tuple[str, ...]:
    """Return the names of the features that are single numbers, in order."""
    return tuple(name for name, kind in features.items() if kind in (float, int, bool))


def images_of(features: Answer) -> dict[str, tuple[int, int, int]]:
    """Return ``(C, h, w)`` of each feature that is an RGB image, in order."""
    shapes = {name: kind for name, kind in features.items() if type(kind) is tuple}
    return {
        name: (3, shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 3 and shape[2] == 3
    }


def read_numbers(caller: str, names: Sequence[str], values: Answer) -> Tensor:
    """Return the named numbers of a driver's answer, float32 ``[N]``.

    Raises:
        SchemaError: one is missing or no number.
    """
    try:
        return torch.tensor([float(values[name]) for name in names])
    except (KeyError, TypeError, ValueError) as error:
        got = {name: values[name] for name in names if name in values}
        raise SchemaError(
            f"{caller}: expected a number for each of {list(names)}, got "
            f"{got}. Look at the driver: its answer is not what its features promise."
        ) from error


def describe_driver(
    action_features: Answer,
    observation_features: Answer,
    declared: RobotDatasetMetadata,
) -> RobotDatasetMetadata:
    """Complete metadata with what a driver's features say.

    LeRobot's features name joints and cameras; units, limits and conventions are in no
    feature and have to be declared.

    Args:
        action_features: the driver's.
        observation_features: the driver's; single numbers are the state, in their
            order, and RGB images are cameras. Others, such as depth, are not read.
        declared: ``dataset_id``, ``action_units``, ``action_low``, ``action_high``,
            ``control_frequency_hz``, and what else is known. Its names are completed
            where they are None; ``cameras`` may choose some.

    Raises:
        SettingsError: the driver has no action or no state.

    Examples:
        >>> joints = {"a.pos": float, "b.pos": float}
        >>> metadata = describe_driver(
        ...     joints,
        ...     joints | {"front": (48, 64, 3)},
        ...     RobotDatasetMetadata("arm", action_dim=2, action_units="deg"),
        ... )
        >>> metadata.state_names, metadata.state_units, metadata.image_sizes
        (('a.pos', 'b.pos'), ('deg', 'deg'), ((3, 48, 64),))
    """
    actions, states = numbers_of(action_features), numbers_of(observation_features)
    if not actions or not states:
        raise SettingsError(
            "describe_driver: expected single numbers among the driver's action and "
            f"observation features, got {list(action_features)} and "
            f"{list(observation_features)}. Such a driver needs an adapter of its own."
        )
    images = images_of(observation_features)
    cameras = declared.cameras or tuple(images)
    units = dict(zip(actions, declared.action_units or (), strict=False))
    known = all(name in units for name in states)
    return replace(
        declared,
        action_dim=len(actions),
        action_names=declared.action_names or actions,
        state_dim=len(states),
        state_names=declared.state_names or states,
        state_units=declared.state_units
        or (tuple(units[name] for name in states) if known else None),
        cameras=cameras,
        image_sizes=declared.image_sizes
        or tuple(images[camera] for camera in cameras if camera in images)
        or None,
    )
