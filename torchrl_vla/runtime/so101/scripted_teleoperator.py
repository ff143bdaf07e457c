"""Scripted teleoperator of the simulated SO-101 arm."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101.joint_units import HIGH, LOW
from torchrl_vla.runtime.so101.so101_robot import SO101Robot
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.schema import STATE_KEY, ExecutionError, RobotDatasetMetadata


class SO101Teleoperator(Teleoperator):
    """Solve the task of a simulated SO-101 arm in the place of a person.

    It sees the cubes of the simulation, and steps every joint from where the
    observation shows it towards a pose that reaches the goal: the action is a function
    of state and goal, which a policy can learn.

    **Reads** ``("observation", "state")`` float32 ``[6]``.

    **Writes** an action float32 ``[6]``, deg and percent.

    Args:
        robot: the arm that it moves.

    Keyword Args:
        max_step_deg: largest distance from the observed joint to its goal.
        hands_off_s: so long it only watches in each episode, then takes over until the
            tip is at the goal: corrections, as a person makes them. 0 = it always
            commands.

    Raises:
        SettingsError: the step is not positive, or the time is negative.

    Examples:
        >>> from torchrl_vla.testing import FakeClock
        >>> robot = SO101Robot(cameras=(), clock=FakeClock())
        >>> with robot, SO101Teleoperator(robot) as teleoperator:
        ...     observed = robot.observe()
        ...     step = teleoperator.read(observed) - observed["observation", "state"]
        >>> step.abs().max() < 12.1
        tensor(True)
    """

    def __init__(
        self, robot: SO101Robot, *, max_step_deg: float = 12.0, hands_off_s: float = 0.0
    ) -> None:
        if not (max_step_deg > 0 and hands_off_s >= 0):
            raise SettingsError(
                "SO101Teleoperator: expected max_step_deg > 0 and hands_off_s >= 0, "
                f"got {max_step_deg} and {hands_off_s}."
            )
        self._hands_off_s = hands_off_s
        self._robot, self._max_step_deg = robot, max_step_deg
        self._is_connected = False

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """The arm's."""
        return self._robot.metadata

    @property
    def is_connected(self) -> bool:
        """True = between ``connect`` and ``disconnect``."""
        return self._is_connected

    def connect(self) -> None:
        """Begin; the robot is connected by itself."""
        self._is_connected = True

    def read(self, observation: TensorDict) -> Tensor | None:
        """Return the next step towards the goal; None = it only watches."""
        if not self._is_connected:
            raise ExecutionError(
                "SO101Teleoperator: expected a connected teleoperator, got one that is "
                "not. Call connect() first, or use `with teleoperator:`."
            )
        if self._robot.elapsed_s < self._hands_off_s - 1e-6:
            return None
        state = observation[STATE_KEY].double().numpy()
        step = self._robot.goal_joints(state) - state
        step = np.clip(step, -self._max_step_deg, self._max_step_deg)
        return torch.tensor(np.clip(state + step, LOW, HIGH), dtype=torch.float32)

    def follow(self, action: Tensor) -> None:
        """Nothing is moved: a script has no device."""

    def disconnect(self) -> None:
        """End."""
        self._is_connected = False
