"""Teleoperator that one of LeRobot's drivers reads."""

from __future__ import annotations

from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.runtime.lerobot.driver_features import (
    Answer,
    Device,
    check_names,
    connect_device,
    numbers_of,
    read_numbers,
)
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata


class TeleoperatorDriver(Device, Protocol):
    """The part of ``lerobot.teleoperators.Teleoperator`` that is used."""

    @property
    def feedback_features(self) -> Answer:
        """Name of each number of a feedback, to its type."""
        ...

    def get_action(self) -> Answer:
        """Return the numbers that are commanded, by name."""
        ...

    def send_feedback(self, feedback: Answer) -> None:
        """Move the device."""
        ...


class LeRobotTeleoperator(Teleoperator):
    """Read a leader arm or another device through its driver in LeRobot.

    Every subclass of ``lerobot.teleoperators.Teleoperator`` serves whose
    ``action_features`` are those of the robot, in the robot's order: so101_leader for
    so101_follower, and so on. A device that commands something else, such as a gamepad
    with steps in m, is refused at ``connect``.

    A driver always commands; LeRobot knows no "hands off". Who acts is decided by keys.

    **Writes** an action float32 ``[A]``, in the robot's space.

    Args:
        driver: LeRobot's.
        metadata: of the robot: what the device's numbers have to mean.

    Keyword Args:
        calibrate: True = ``connect`` lets the driver calibrate, for which it may ask at
            the terminal.

    Raises:
        IncompatibleMetadataError: ``connect``, where names or order are not the
            driver's.
        ExecutionError: ``connect`` without a calibration; use without a connection.
        SchemaError: the driver's answer is not what its features promise.

    Source: LeRobot, lerobot/teleoperators/teleoperator.py (0.6.1).
    """

    def __init__(
        self,
        driver: TeleoperatorDriver,
        metadata: RobotDatasetMetadata,
        *,
        calibrate: bool = False,
    ) -> None:
        self._driver, self._metadata = driver, metadata
        self._calibrate = calibrate
        self._is_moved = False

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What its numbers mean."""
        return self._metadata

    @property
    def is_connected(self) -> bool:
        """True = the driver is."""
        return self._driver.is_connected

    @property
    def has_feedback(self) -> bool:
        """True = the driver's feedback are the numbers of its actions."""
        return numbers_of(self._driver.feedback_features) == self._names()

    def connect(self) -> None:
        """Compare the metadata with the driver's features, and connect it."""
        if self._driver.is_connected:
            return
        check_names(
            "LeRobotTeleoperator", "action", self._metadata.action_names, self._names()
        )
        connect_device("LeRobotTeleoperator", self._driver, self._calibrate)

    def read(self, observation: TensorDict) -> Tensor:
        """Return what the device commands now."""
        self._check_is_connected()
        self._let_go()
        return read_numbers(
            "LeRobotTeleoperator", self._names(), self._driver.get_action()
        )

    def follow(self, action: Tensor) -> None:
        """Move the device to a pose; its motors hold it until the next ``read``."""
        if not self.has_feedback:
            return
        self._check_is_connected()
        if not self._is_moved:
            self._switch_torque("enable_torque")
            self._is_moved = True
        numbers = action.detach().to("cpu", torch.float32).tolist()
        self._driver.send_feedback(dict(zip(self._names(), numbers, strict=True)))

    def disconnect(self) -> None:
        """Disconnect the driver."""
        if self._driver.is_connected:
            self._let_go()
            self._driver.disconnect()

    def _names(self) -> tuple[str, ...]:
        return numbers_of(self._driver.action_features)

    def _let_go(self) -> None:
        """Let the motors turn freely, so that a hand can move the device."""
        if self._is_moved:
            self._switch_torque("disable_torque")
            self._is_moved = False

    def _switch_torque(self, method: str) -> None:
        # Leader arms have it; the base class does not declare it.
        switch = getattr(self._driver, method, None)
        if switch is not None:
            switch()

    def _check_is_connected(self) -> None:
        if not self._driver.is_connected:
            raise ExecutionError(
                "LeRobotTeleoperator: expected a connected driver, got one that is "
                "not. Call connect() first, or use `with teleoperator:`."
            )
