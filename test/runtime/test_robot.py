from __future__ import annotations

import pytest
import torch

from torchrl_vla.runtime import Robot, Teleoperator
from torchrl_vla.testing import FakeRobot, FakeTeleoperator, check_robot


class Arm(Robot):
    """Inherits the interface, and delegates to a fake."""

    def __init__(self):
        self.inside = FakeRobot()

    @property
    def metadata(self):
        return self.inside.metadata

    @property
    def is_connected(self):
        return self.inside.is_connected

    def connect(self):
        self.inside.connect()

    def observe(self):
        return self.inside.observe()

    def send(self, action):
        return self.inside.send(action)

    def disconnect(self):
        self.inside.disconnect()


class Leader(Teleoperator):
    metadata = FakeRobot().metadata
    is_connected = True

    def connect(self):
        pass

    def read(self, observation):
        return torch.zeros(2)

    def disconnect(self):
        pass


def test_a_robot_that_inherits_gets_the_context_manager():
    arm = Arm()
    check_robot(arm)
    arm.inside.events.clear()
    with pytest.raises(ZeroDivisionError), arm as entered:
        entered.send(torch.ones(2) / (1 // len(arm.inside.sent[1:])))
    assert arm.inside.events == ["connect", "disconnect"]


def test_a_robot_without_a_member_cannot_be_made():
    class Deaf(Robot):
        def observe(self):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Deaf()


def test_a_class_with_the_members_is_a_robot_and_another_one_is_not():
    assert isinstance(FakeRobot(), Robot)
    assert isinstance(FakeTeleoperator(FakeRobot().metadata, id), Teleoperator)
    assert not isinstance(object(), Robot)


def test_a_teleoperator_that_inherits_has_no_feedback_of_its_own():
    with Leader() as leader:
        assert not leader.has_feedback
        assert leader.follow(torch.zeros(2)) is None
