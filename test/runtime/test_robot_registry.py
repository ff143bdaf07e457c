from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from torchrl_vla.errors import NamedObjectError
from torchrl_vla.runtime import Robot, Teleoperator, make_robot, make_teleoperator
from torchrl_vla.runtime.known_robots import ROBOTS, TELEOPERATORS
from torchrl_vla.testing import FakeRobot, check_robot


@pytest.fixture
def my_arm(monkeypatch):
    module = SimpleNamespace(
        make=lambda port="usb": FakeRobot(),
        lead=lambda metadata: make_teleoperator("fake", metadata),
        wrong=lambda: 3,
    )
    monkeypatch.setitem(sys.modules, "my_arm", module)


def test_the_fake_robot_is_a_robot_and_its_teleoperator_one():
    robot = make_robot("fake", num_joints=3, image_size=8)
    assert isinstance(robot, Robot)
    check_robot(robot)
    teleoperator = make_teleoperator("fake", robot.metadata)
    assert isinstance(teleoperator, Teleoperator)
    actions = [teleoperator.read(None) for _ in range(31)]
    assert actions[0].tolist() == [0.0] * 3
    assert actions[30].tolist() == pytest.approx([0.5] * 3)  # a quarter of 4 s


def test_a_robot_of_the_users_own_is_made_by_its_function(my_arm):
    robot = make_robot("my_arm:make", port="tcp")
    assert robot.metadata.dataset_id == "fake_robot"
    assert make_teleoperator("my_arm:lead", robot.metadata).metadata == robot.metadata


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("fak", {}, ValueError, "Did you mean 'fake'"),
        ("fake", {"joints": 3}, ValueError, r"got \['joints'\]"),
        ("my_arm:make", {"usb": 1}, ValueError, r"got \['usb'\]"),
        ("my_arm:none", {}, NamedObjectError, "'none'"),
        ("my_arm:wrong", {}, NamedObjectError, "got int. Return the robot"),
    ],
)
def test_a_wrong_name_or_option_says_what_is_right(
    my_arm, name, options, error, message
):
    with pytest.raises(error, match=message):
        make_robot(name, **options)


def test_what_is_no_teleoperator_is_refused(my_arm):
    with pytest.raises(NamedObjectError, match="got int"):
        make_teleoperator("my_arm:wrong", FakeRobot().metadata)


def test_every_name_leads_to_a_maker():
    assert {"fake"} <= set(ROBOTS)
    assert {"fake"} <= set(TELEOPERATORS)
