from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchrl_vla.testing import FakeRobot, FakeRobotOptions, check_robot


class KeepsOneTensor(FakeRobot):
    def observe(self):
        if not hasattr(self, "kept"):
            self.kept = super().observe()
        self.kept["observation", "state"].add_(0.1)
        return self.kept


class SpoilsTheAction(FakeRobot):
    def send(self, action):
        action.add_(0.1)
        return super().send(action)


class GoesBack(FakeRobot):
    def observe(self):
        out = super().observe()
        self.at_s = getattr(self, "at_s", 10.0) - 1
        return out.set("observed_at_s", torch.tensor([self.at_s]).double())


class NeedsNoConnection(FakeRobot):
    def _check_is_connected(self, caller):
        pass


class StaysConnected(FakeRobot):
    def disconnect(self):
        pass


class RenamesItsJoints(FakeRobot):
    def connect(self):
        super().connect()
        self.metadata = replace(self.metadata, dataset_id="another")


class HasFloatImages(FakeRobot):
    def observe(self):
        out = super().observe()
        image = out["observation", "image", "front"]
        return out.set(("observation", "image", "front"), image.float())


@pytest.mark.parametrize(
    "options", [FakeRobotOptions(), FakeRobotOptions(4, image_size=8)]
)
def test_the_fake_robot_passes(options):
    robot = FakeRobot(options)
    check_robot(robot)
    assert robot.events == ["connect", "disconnect"]
    assert torch.equal(robot.sent[0][1], torch.zeros(options.num_joints))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (KeepsOneTensor, "to stay as it was handed out"),
        (SpoilsTheAction, "leave the action as it was"),
        (GoesBack, "not to go back, got 8.0 after 9.0"),
        (NeedsNoConnection, r"observe: expected an error before connect\(\)"),
        (StaysConnected, r"no connection after disconnect\(\)"),
        (RenamesItsJoints, "the same metadata before and after"),
        (HasFloatImages, r"torch.uint8.*got \(torch.float32"),
    ],
)
def test_each_breach_is_found(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_robot(broken(FakeRobotOptions(image_size=8)))


def test_a_robot_that_does_not_measure_its_position_needs_an_action():
    robot = FakeRobot()
    robot.metadata = replace(robot.metadata, state_names=("a", "b"))
    with pytest.raises(ValueError, match="Pass action="):
        check_robot(robot)
    check_robot(robot, action=torch.tensor([0.5, 5.0]))
    assert robot.sent[0][1].tolist() == [0.5, 1.0]  # within its limits
