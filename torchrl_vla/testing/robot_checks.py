"""Contract check of a robot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.schema import (
    OBSERVED_AT_KEY,
    ROBOT_FIELDS,
    STATE_KEY,
    RobotDatasetMetadata,
    declared_observations,
    position_of,
)


class _Robot(Protocol):
    @property
    def metadata(self) -> RobotDatasetMetadata: ...

    @property
    def is_connected(self) -> bool: ...

    def connect(self) -> None: ...

    def observe(self) -> TensorDict: ...

    def send(self, action: Tensor) -> Tensor: ...

    def disconnect(self) -> None: ...


def check_robot(robot: _Robot, *, action: Tensor | None = None) -> None:
    """Check that a robot has the members and behaviour that the runtime relies on.

    The contract: its metadata declare names, units and limits of the actions, the rate
    and the state before it is connected, and stay the same; it observes what they
    declare, at instants that do not go back, in tensors that are never written to
    again; it takes an action within its limits and returns what was commanded, without
    changing the tensor; without a connection it refuses to observe and to send;
    ``disconnect`` may be called again.

    Note:
        The robot is connected, and commanded one action: where it is, unless another
        one is given.

    Args:
        robot: that is not connected.

    Keyword Args:
        action: float32 ``[A]`` that is safe to send; None = its measured position.

    Raises:
        AssertionError: the contract is broken; the message says how.
        ValueError: the robot does not measure its position, and there is no action.

    Examples:
        >>> from torchrl_vla.testing import FakeRobot
        >>> check_robot(FakeRobot())
        >>> class Mute(FakeRobot):
        ...     def send(self, action):
        ...         super().send(action)
        >>> check_robot(Mute())
        Traceback (most recent call last):
        ...
        AssertionError: Mute.send: expected to return the commanded action float32 \
[2], got None.
    """
    name, metadata = type(robot).__name__, robot.metadata
    missing = [field for field in ROBOT_FIELDS if vars(metadata)[field] is None]
    if missing:
        raise AssertionError(f"{name}: expected metadata with {missing}, got none.")
    if robot.is_connected:
        raise AssertionError(f"{name}: expected no connection yet, got one.")
    _check_refuses(name, robot, "before connect()")
    robot.connect()
    try:
        if not robot.is_connected:
            raise AssertionError(f"{name}: expected is_connected after connect().")
        if robot.metadata != metadata:
            raise AssertionError(
                f"{name}: expected the same metadata before and after connect(), got "
                f"{metadata} and {robot.metadata}."
            )
        _check_connected(name, robot, action)
    finally:
        robot.disconnect()
    robot.disconnect()
    if robot.is_connected:
        raise AssertionError(f"{name}: expected no connection after disconnect().")
    _check_refuses(name, robot, "after disconnect()")


def _check_connected(name: str, robot: _Robot, action: Tensor | None) -> None:
    metadata = robot.metadata
    first = robot.observe()
    copy = first.clone()
    _check_observation(name, metadata, first)
    if action is None:
        action = position_of(metadata, first[STATE_KEY])
    if action is None:
        raise ValueError(
            f"check_robot: expected an action that is safe to send, as the state of "
            f"{name} does not name the action's dimensions. Pass action=."
        )
    low, high = torch.tensor([metadata.action_low, metadata.action_high])
    action = action.to(torch.float32).clamp(low, high)
    kept = action.clone()
    sent = robot.send(action)
    shape = None if sent is None else (sent.dtype, tuple(sent.shape))
    if shape != (torch.float32, (metadata.action_dim,)):
        raise AssertionError(
            f"{name}.send: expected to return the commanded action float32 "
            f"[{metadata.action_dim}], got {shape}."
        )
    if not torch.equal(action, kept):
        raise AssertionError(f"{name}.send: expected to leave the action as it was.")
    second = robot.observe()
    _check_observation(name, metadata, second)
    if second[OBSERVED_AT_KEY].item() < first[OBSERVED_AT_KEY].item():
        raise AssertionError(
            f"{name}.observe: expected {OBSERVED_AT_KEY!r} not to go back, got "
            f"{second[OBSERVED_AT_KEY].item()} after {first[OBSERVED_AT_KEY].item()}."
        )
    for key, value in copy.items(True, True):
        if not torch.equal(first[key], value):
            raise AssertionError(
                f"{name}.observe: expected {key!r} to stay as it was handed out, got "
                "other values later. Return a copy."
            )


def _check_observation(
    name: str, metadata: RobotDatasetMetadata, observed: TensorDict
) -> None:
    for key, expected in declared_observations(metadata).items():
        value = observed.get(key, None)
        got = None if value is None else (value.dtype, tuple(value.shape))
        if got != expected:
            raise AssertionError(
                f"{name}.observe: expected {expected} at {key!r}, got {got}."
            )
    if tuple(observed.batch_size):
        raise AssertionError(
            f"{name}.observe: expected batch size [], got {list(observed.batch_size)}."
        )


def _check_refuses(name: str, robot: _Robot, when: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "observe": robot.observe,
        "send": lambda: robot.send(torch.zeros(int(robot.metadata.action_dim or 1))),
    }
    for member, call in calls.items():
        try:
            call()
        except Exception:
            continue
        raise AssertionError(f"{name}.{member}: expected an error {when}, got none.")
