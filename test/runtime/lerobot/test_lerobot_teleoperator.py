from __future__ import annotations

import pytest
import torch
from lerobot_drivers import JOINTS, Arm, Gamepad, Leader
from tensordict import TensorDict

from torchrl_vla.errors import IncompatibleMetadataError
from torchrl_vla.runtime.lerobot import LeRobotRobot, LeRobotTeleoperator
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata

METADATA = LeRobotRobot(
    Arm(), RobotDatasetMetadata("arm", action_dim=3, action_units="deg")
).metadata
OBSERVED = TensorDict({}, [])


def test_numbers_come_in_the_order_of_the_robot():
    with LeRobotTeleoperator(Leader(), METADATA) as teleoperator:
        assert teleoperator.read(OBSERVED).tolist() == [10.0, 20.0, 30.0]
        assert teleoperator.metadata == METADATA
    assert not teleoperator.is_connected


def test_a_leader_follows_with_torque_and_is_free_again_when_it_is_read():
    driver = Leader()
    teleoperator = LeRobotTeleoperator(driver, METADATA)
    assert teleoperator.has_feedback
    with teleoperator:
        for value in (1.0, 2.0):
            teleoperator.follow(torch.full((3,), value))
        assert driver.pose == dict.fromkeys(JOINTS, 2.0)
        teleoperator.read(OBSERVED)
        teleoperator.read(OBSERVED)
        teleoperator.follow(torch.zeros(3))
    expected = ["connect False", "torque on", "feedback", "feedback", "torque off"]
    expected += ["torque on", "feedback", "torque off", "disconnect"]
    assert driver.events == expected


def test_another_order_is_refused_before_anything_is_connected():
    driver = Leader()
    metadata = RobotDatasetMetadata("arm", action_names=JOINTS[::-1])
    with pytest.raises(IncompatibleMetadataError, match="another order"):
        LeRobotTeleoperator(driver, metadata).connect()
    assert driver.events == []


def test_a_device_that_commands_something_else_is_refused():
    driver = Gamepad()
    with pytest.raises(IncompatibleMetadataError, match=r"\['delta_x', 'delta_y'\]"):
        LeRobotTeleoperator(driver, METADATA).connect()
    assert not driver.is_connected


def test_a_driver_that_takes_no_calibration_is_connected_and_moves_no_device():
    metadata = RobotDatasetMetadata("base", action_names=("delta_x", "delta_y"))
    teleoperator = LeRobotTeleoperator(Gamepad(), metadata)
    assert not teleoperator.has_feedback
    with teleoperator:
        assert teleoperator.read(OBSERVED).tolist() == [0.5, 0.0]
        teleoperator.follow(torch.zeros(2))  # nothing happens


def test_without_calibration_or_connection_nothing_is_read():
    with pytest.raises(ExecutionError, match="calibrated Leader"):
        LeRobotTeleoperator(Leader(calibrated=False), METADATA).connect()
    with pytest.raises(ExecutionError, match="Call connect"):
        LeRobotTeleoperator(Leader(), METADATA).read(OBSERVED)
