"""LeRobot's own drivers, subclassed without hardware, behind our interfaces."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass

import pytest
from lerobot_drivers import JOINTS, Arm, Leader
from tensordict import TensorDict

from torchrl_vla.errors import IncompatibleMetadataError
from torchrl_vla.runtime import RobotEnv, SafetyGate
from torchrl_vla.runtime.lerobot import LeRobotRobot, LeRobotTeleoperator
from torchrl_vla.runtime.so101.joint_units import make_arm_metadata
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata
from torchrl_vla.testing import FakeClock, check_robot

pytestmark = pytest.mark.lerobot

DECLARED = RobotDatasetMetadata(
    "arm",
    action_dim=3,
    action_units=("deg", "deg", "percent"),
    action_reference="absolute",
    action_low=(-100.0, -100.0, 0.0),
    action_high=(100.0, 100.0, 100.0),
    control_frequency_hz=30.0,
)


def of_lerobot(fake, base, config_base, folder):
    """Return a maker of fakes that are subclasses of LeRobot's base class."""

    @dataclass(kw_only=True)
    class Config(config_base):
        pass

    class Driver(fake, base):
        config_class = Config
        name = "test_driver"

        def __init__(self, config, **options):
            base.__init__(self, config)
            fake.__init__(self, **options)

        def calibrate(self):
            self.calibrated = True

        def configure(self):
            pass

    return lambda **options: Driver(Config(id="a", calibration_dir=folder), **options)


@pytest.fixture
def make_arm(tmp_path):
    from lerobot.robots import Robot, RobotConfig

    return of_lerobot(Arm, Robot, RobotConfig, tmp_path)


@pytest.fixture
def make_leader(tmp_path):
    from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

    return of_lerobot(Leader, Teleoperator, TeleoperatorConfig, tmp_path)


def test_a_robot_of_lerobot_keeps_our_contract(make_arm):
    assert isinstance(make_arm(), importlib.import_module("lerobot.robots").Robot)
    check_robot(LeRobotRobot(make_arm(), DECLARED))


def test_a_leader_of_lerobot_moves_a_robot_of_lerobot_through_the_gate(
    make_arm, make_leader
):
    driver, clock = make_arm(), FakeClock()
    gate = SafetyGate(LeRobotRobot(driver, DECLARED, clock=clock), clock=clock)
    env = RobotEnv(gate, task="follow the leader", max_steps=2)
    leader = make_leader()
    with LeRobotTeleoperator(leader, gate.metadata) as teleoperator:
        step = env.reset()
        action = teleoperator.read(TensorDict({}, []))
        env.step(step.set("action", action.unsqueeze(0)))
    env.close()
    assert driver.sent == [dict(zip(JOINTS, (10.0, 20.0, 30.0)))]
    assert not driver.is_connected
    assert not leader.is_connected


def test_another_order_is_refused_at_connect(make_arm, make_leader):
    swapped = RobotDatasetMetadata("arm", action_names=JOINTS[::-1])
    driver = make_arm()
    with pytest.raises(IncompatibleMetadataError, match="another order"):
        LeRobotRobot(driver, swapped).connect()
    with pytest.raises(IncompatibleMetadataError, match="another order"):
        LeRobotTeleoperator(make_leader(), swapped).connect()
    assert driver.events == []


def test_an_arm_that_is_not_calibrated_is_not_used(make_arm):
    driver = make_arm(calibrated=False)
    with pytest.raises(ExecutionError, match="lerobot-calibrate"):
        LeRobotRobot(driver, DECLARED).connect()
    assert not driver.is_connected


def test_our_simulated_arm_has_the_joints_of_lerobots_so101_in_its_order():
    # The driver itself cannot be made without the package of its motors.
    so101 = pytest.importorskip("lerobot.robots.so_follower").SO101Follower
    source = inspect.getsource(so101)
    motors = re.findall(r'"(\w+)": Motor\(\d, "sts3215", (\S+)\)', source)
    names = tuple(f"{motor}.pos" for motor, _ in motors)
    assert names == make_arm_metadata((), 64, 30.0).action_names
    assert [mode for _, mode in motors[:5]] == 5 * ["norm_mode_body"]
    assert motors[5][1] == "MotorNormMode.RANGE_0_100"
    assert so101.config_class(port="none").use_degrees
