"""Robot that one of LeRobot's drivers moves."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.errors import IncompatibleMetadataError
from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.lerobot.driver_features import (
    Answer,
    Device,
    check_names,
    connect_device,
    describe_driver,
    images_of,
    numbers_of,
    read_numbers,
)
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    OBSERVED_AT_KEY,
    STATE_KEY,
    ExecutionError,
    RobotDatasetMetadata,
    SchemaError,
    check_actions,
)


class RobotDriver(Device, Protocol):
    """The part of ``lerobot.robots.Robot`` that is used."""

    @property
    def observation_features(self) -> Answer:
        """Name of each part of an observation, to its type or shape."""
        ...

    def get_observation(self) -> Answer:
        """Return numbers, and images ``[h, w, C]``, by name."""
        ...

    def send_action(self, action: Answer) -> Answer:
        """Command numbers by name, and return those that were commanded."""
        ...


class LeRobotRobot(Robot):
    """Move an arm through its driver in LeRobot, under canonical keys.

    Every subclass of ``lerobot.robots.Robot`` with single numbers as actions serves:
    so101_follower, koch_follower, openarm_follower, lekiwi and those of plugins. Names
    and cameras come from the driver's features, in their order, as LeRobot records
    datasets; units and limits do not stand there and are declared::

        from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

        robot = LeRobotRobot(
            SO101Follower(SO101FollowerConfig(port="/dev/ttyACM0", id="arm")),
            SO101Robot(cameras=()).metadata,  # degrees, percent, limits, 30 Hz
        )

    Nothing is converted here: a policy of other units or another order is refused at
    the gate, or converted by ``RobotDatasetMetadata.conversion_to``.

    Note:
        LeRobot does not say when an image was taken. ``observed_at_s`` is the instant
        before the driver is read, less ``camera_latency_s``.

    **Reads** (``send``) an action float32 ``[A]``, by the names of ``action_features``.

    **Writes** (``observe``) ``("observation", "state")`` float32 ``[S]``: the driver's
    single numbers; ``("observation", "image", camera)`` uint8 ``[3, h, w]`` RGB;
    ``observed_at_s`` float64 ``[1]``.

    Args:
        driver: LeRobot's.
        declared: what the numbers mean; names, state and cameras are completed from the
            driver where they are left out.

    Keyword Args:
        calibrate: True = ``connect`` lets the driver calibrate, for which it may ask at
            the terminal.
        camera_latency_s: assumed age of the images when they are read.
        clock: of ``observed_at_s``; None = the monotonic one.

    Raises:
        IncompatibleMetadataError: ``connect``, where names, order, cameras or sizes are
            not the driver's.
        ExecutionError: ``connect`` without a calibration; use without a connection.
        SchemaError: the driver's answer is not what its features promise.
        SettingsError: the driver has no single numbers as action and state.

    Source: LeRobot, lerobot/robots/robot.py (0.6.1).
    """

    def __init__(
        self,
        driver: RobotDriver,
        declared: RobotDatasetMetadata,
        *,
        calibrate: bool = False,
        camera_latency_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._driver, self._calibrate = driver, calibrate
        self._camera_latency_s = camera_latency_s
        self._clock = MonotonicClock() if clock is None else clock
        self._metadata = describe_driver(
            driver.action_features, driver.observation_features, declared
        )

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What was declared, completed from the driver's features."""
        return self._metadata

    @property
    def is_connected(self) -> bool:
        """True = the driver is."""
        return self._driver.is_connected

    def connect(self) -> None:
        """Compare the metadata with the driver's features, and connect it."""
        if self._driver.is_connected:
            return
        features = self._driver.observation_features
        actions = numbers_of(self._driver.action_features)
        check_names("LeRobotRobot", "action", self._metadata.action_names, actions)
        states = numbers_of(features)
        check_names("LeRobotRobot", "state", self._metadata.state_names, states)
        self._check_cameras(images_of(features))
        connect_device("LeRobotRobot", self._driver, self._calibrate)

    def observe(self) -> TensorDict:
        """Read the driver."""
        self._check_is_connected()
        taken_s = self._clock.now_s()
        if self._metadata.cameras:
            taken_s -= self._camera_latency_s
        values = self._driver.get_observation()
        names = self._metadata.state_names or ()
        out = TensorDict({STATE_KEY: read_numbers("LeRobotRobot", names, values)}, [])
        sizes = self._metadata.image_sizes or ()
        for camera, size in zip(self._metadata.cameras, sizes, strict=True):
            key = (*IMAGE_KEY, camera)
            out[key] = self._read_image(camera, size, values)
        out[OBSERVED_AT_KEY] = torch.tensor([taken_s], dtype=torch.float64)
        return out

    def send(self, action: Tensor) -> Tensor:
        """Command an action, and return what the driver says it commanded.

        Raises:
            ExecutionError: the action is no finite ``[A]``.
        """
        self._check_is_connected()
        names = self._metadata.action_names or ()
        check_actions(
            "LeRobotRobot", ACTION_KEY, action, [], [len(names)], error=ExecutionError
        )
        numbers = action.detach().to("cpu", torch.float32).tolist()
        sent = self._driver.send_action(dict(zip(names, numbers, strict=True)))
        return read_numbers("LeRobotRobot", names, sent)

    def disconnect(self) -> None:
        """Disconnect the driver."""
        if self._driver.is_connected:
            self._driver.disconnect()

    def _check_cameras(self, images: dict[str, tuple[int, int, int]]) -> None:
        cameras, sizes = self._metadata.cameras, self._metadata.image_sizes or ()
        wanted = dict(zip(cameras, sizes, strict=False))
        known = {name: size for name, size in images.items() if name in cameras}
        if wanted != known or len(wanted) < len(cameras):
            raise IncompatibleMetadataError(
                f"LeRobotRobot: expected cameras (C, h, w) of the driver, {images}, "
                f"got {list(cameras)} with {list(sizes)} from the metadata. Declare "
                "some of the driver's, or leave cameras and image_sizes out. Nothing "
                "is connected."
            )

    def _read_image(
        self, camera: str, size: tuple[int, int, int], values: Answer
    ) -> Tensor:
        image = np.asarray(values.get(camera))
        wanted = (*size[1:], size[0])
        if image.dtype != np.uint8 or image.shape != wanted:
            raise SchemaError(
                f"LeRobotRobot: expected uint8 {list(wanted)} at {camera!r}, got "
                f"{image.dtype} {list(image.shape)}. Look at the camera: its answer is "
                "not what the driver's features promise."
            )
        return torch.from_numpy(image.copy()).permute(2, 0, 1)

    def _check_is_connected(self) -> None:
        if not self._driver.is_connected:
            raise ExecutionError(
                "LeRobotRobot: expected a connected driver, got one that is not. Call "
                "connect() first, or use `with robot:`. No action was sent."
            )
