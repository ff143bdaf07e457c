from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.runtime import (
    ControlLoop,
    GateOptions,
    SafetyGate,
    TeleoperatorPolicy,
    linear_path,
    move_robot,
    move_teleoperator,
)
from torchrl_vla.schema import ExecutionError
from torchrl_vla.testing import FakeClock, FakeRobot, FakeTeleoperator


def test_a_line_has_equal_steps_and_ends_at_the_goal_exactly():
    start, goal = torch.tensor([0.0, 1.0]), torch.tensor([0.3, -1.0])
    poses = torch.stack([start, *linear_path(start, goal, 10)])
    assert len(poses) == 11
    assert torch.equal(poses[-1], goal)
    torch.testing.assert_close(poses.diff(dim=0), ((goal - start) / 10).expand(10, 2))


def test_a_dimension_without_a_goal_stays():
    poses = list(linear_path(torch.zeros(2), torch.tensor([1.0, torch.nan]), 4))
    assert [pose[1].item() for pose in poses] == [0.0] * 4


def test_the_robot_moves_through_its_gate_at_the_rate():
    clock = FakeClock()
    robot = FakeRobot(clock=clock)
    gate = SafetyGate(robot, GateOptions("clip", max_step=0.0401), clock=clock)
    gate.connect()
    gate.begin_session()
    goal = torch.tensor([0.6, 0.0])
    loop = ControlLoop(30.0, clock=clock)
    loop.wait()
    move_robot(gate, torch.zeros(2), goal, loop, 0.5)
    assert len(robot.sent) == 15
    assert gate.log.counts == {}  # 0.04 a step
    torch.testing.assert_close(robot.sent[-1][1], goal)
    instants = torch.tensor([at_s for at_s, _ in robot.sent])
    torch.testing.assert_close(instants.diff(), torch.full((14,), 1 / 30))


def test_the_leader_moves_to_the_robot_and_ends_with_the_loop():
    clock = FakeClock()
    leader = FakeTeleoperator(
        FakeRobot().metadata, lambda call: None, has_feedback=True
    )
    loop = ControlLoop(30.0, clock=clock)
    goal = torch.tensor([0.5, -0.5])
    move_teleoperator(leader, torch.zeros(2), goal, loop, 2.0)
    assert len(leader.followed) == 60
    assert torch.equal(leader.followed[-1], goal)
    loop.end("quit")
    move_teleoperator(leader, goal, torch.zeros(2), loop, 2.0)
    assert len(leader.followed) == 60


def test_a_leader_without_feedback_cannot_be_moved():
    leader = FakeTeleoperator(FakeRobot().metadata, lambda call: None)
    with pytest.raises(ExecutionError, match="TeleoperatorPolicy"):
        move_teleoperator(leader, torch.zeros(2), torch.ones(2), ControlLoop(30.0), 1.0)


def test_a_takeover_comes_to_the_leader_on_a_line():
    """0.5 s at 10 Hz from 0 to 1, then where the leader is."""
    leader = FakeTeleoperator(
        FakeRobot().metadata, lambda call: None if call == 0 else torch.ones(2)
    )
    policy = TeleoperatorPolicy(leader, handover_s=0.5, rate_hz=10.0)
    step = TensorDict({"observation": {"state": torch.zeros(1, 2)}}, [1])
    step["previous_action"] = torch.zeros(1, 2)
    seen = []
    for _ in range(8):
        step["previous_action"] = policy(step)["action"]
        seen.append(round(step["action"][0, 0].item(), 4))
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert step["is_intervention"].item()
