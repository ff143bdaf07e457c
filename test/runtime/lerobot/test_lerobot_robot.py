from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot_drivers import JOINTS, Arm

from torchrl_vla.errors import IncompatibleMetadataError
from torchrl_vla.runtime import GateOptions, RobotEnv, SafetyGate
from torchrl_vla.runtime.lerobot import LeRobotRobot
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata, SchemaError
from torchrl_vla.testing import FakeClock, check_robot

DECLARED = RobotDatasetMetadata(
    "arm",
    action_dim=3,
    action_units=("deg", "deg", "percent"),
    action_reference="absolute",
    action_low=(-100.0, -100.0, 0.0),
    action_high=(100.0, 100.0, 100.0),
    control_frequency_hz=30.0,
)
IMAGE = ("observation", "image")


def test_it_keeps_the_contract_of_a_robot():
    check_robot(LeRobotRobot(Arm(), DECLARED))


def test_an_observation_has_canonical_keys_in_the_drivers_order():
    clock = FakeClock(5.0)
    robot = LeRobotRobot(Arm(), DECLARED, clock=clock, camera_latency_s=0.1)
    with robot:
        observed = robot.observe()
    assert robot.metadata.state_names == JOINTS
    # The driver answers in another order than its features have.
    assert observed["observation", "state"].tolist() == [1.0, 2.0, 3.0]
    front = observed[(*IMAGE, "front")]
    assert front.shape == (3, 4, 6)
    expected = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert front[2, 1, 5].item() == expected[1, 5, 2]
    assert set(observed[IMAGE].keys()) == {"front", "wrist"}  # and no depth
    assert observed["observed_at_s"].tolist() == [4.9]


def test_an_image_is_a_copy_of_the_drivers_buffer():
    driver = Arm()
    with LeRobotRobot(driver, DECLARED) as robot:
        before = robot.observe()[(*IMAGE, "front")].clone()
        seen = robot.observe()[(*IMAGE, "front")]
        driver.image[:] = 0
    assert torch.equal(seen, before)


def test_an_action_goes_by_name_and_what_the_driver_did_comes_back():
    driver = Arm()
    with LeRobotRobot(driver, DECLARED) as robot:
        sent = robot.send(torch.tensor([95.0, -5.0, 50.0]))
    assert driver.sent == [dict(zip(JOINTS, (95.0, -5.0, 50.0)))]
    assert sent.tolist() == [90.0, -5.0, 50.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"action_names": (JOINTS[1], JOINTS[0], JOINTS[2])},
            r"action_names of the driver, \['shoulder_pan.*another order",
        ),
        (
            {"state_names": JOINTS[::-1], "state_dim": 3},
            r"state_names of the driver.*another order",
        ),
        (
            {"action_names": ("x", "y", "z")},
            r"got \['x', 'y', 'z'\] from the metadata: other names",
        ),
        ({"cameras": ("top",)}, r"cameras .*of the driver.*got \['top'\]"),
        (
            {"cameras": ("front",), "image_sizes": ((3, 6, 4),)},
            r"'front': \(3, 4, 6\).*got \['front'\] with \[\(3, 6, 4\)\]",
        ),
    ],
)
def test_other_names_order_or_cameras_are_refused_before_anything_is_connected(
    change, message
):
    driver = Arm()
    robot = LeRobotRobot(driver, replace(DECLARED, **change))
    with pytest.raises(IncompatibleMetadataError, match=message):
        robot.connect()
    assert driver.events == []


def test_some_of_the_cameras_may_be_chosen():
    declared = replace(DECLARED, cameras=("wrist",))
    with LeRobotRobot(Arm(), declared) as robot:
        observed = robot.observe()
    assert set(observed[IMAGE].keys()) == {"wrist"}
    assert (observed[(*IMAGE, "wrist")] == 7).all()


def test_an_arm_without_calibration_is_refused_unless_it_may_be_calibrated():
    driver = Arm(calibrated=False)
    with pytest.raises(ExecutionError, match=r"calibrated Arm.*lerobot-calibrate"):
        LeRobotRobot(driver, DECLARED).connect()
    assert driver.events == ["connect False", "disconnect"]
    LeRobotRobot(driver, DECLARED, calibrate=True).connect()
    assert driver.is_connected


def test_an_answer_that_breaks_the_drivers_promise_is_refused():
    driver = Arm()
    with LeRobotRobot(driver, DECLARED) as robot:
        driver.image = driver.image.astype(np.float32)
        with pytest.raises(SchemaError, match=r"uint8 \[4, 6, 3\] at 'front'.*float32"):
            robot.observe()
        del driver.position[JOINTS[1]]
        with pytest.raises(SchemaError, match="expected a number for each of"):
            robot.observe()


def test_without_a_connection_and_with_illegal_numbers_nothing_is_sent():
    driver = Arm()
    robot = LeRobotRobot(driver, DECLARED)
    for call in (robot.observe, lambda: robot.send(torch.zeros(3))):
        with pytest.raises(ExecutionError, match="Call connect"):
            call()
    with robot, pytest.raises(ExecutionError, match="finite actions"):
        robot.send(torch.tensor([0.0, float("inf"), 0.0]))
    assert driver.sent == []
    robot.disconnect()
    assert driver.events == ["connect False", "disconnect"]


def test_the_gate_stands_before_the_driver():
    driver, clock = Arm(), FakeClock()
    robot = LeRobotRobot(driver, DECLARED, clock=clock)
    gate = SafetyGate(robot, GateOptions("clip", max_step=8.0), clock=clock)
    env = RobotEnv(gate, task="move", max_steps=3)
    step = env.reset()
    env.step(step.set("action", torch.tensor([[90.0, 2.0, 3.0]])))
    env.close()
    # 90 degrees in one step become 8, as LeRobot's max_relative_target would have it.
    assert driver.sent == [dict(zip(JOINTS, (9.0, 2.0, 3.0)))]
    assert driver.events[-1] == "disconnect"
