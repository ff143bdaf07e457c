from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.runtime import (
    ControlLoop,
    GateOptions,
    RobotEnv,
    RobotStoppedError,
    SafetyGate,
)
from torchrl_vla.schema import ExecutionError, MissingKeyError
from torchrl_vla.testing import FakeClock, FakeRobot, FakeRobotOptions, check_env


def make_env(gate_options=None, robot_options=None, **options):
    clock = FakeClock()
    robot = FakeRobot(robot_options, clock=clock)
    gate = SafetyGate(robot, gate_options, clock=clock)
    env = RobotEnv(gate, task="wave", on_reset=robot.place, **options)
    return env, robot, clock


def constant(*values: float) -> TensorDictModule:
    action = torch.tensor([values])
    return TensorDictModule(
        lambda state: action.clone(), [("observation", "state")], ["action"]
    )


@pytest.mark.parametrize("image_size", [None, 8])
def test_it_passes_the_check_of_environments(image_size):
    env, _, _ = make_env(robot_options=FakeRobotOptions(image_size=image_size))
    env.max_steps = 20
    check_env(env, max_steps=20)


def test_a_rollout_at_30_hz_takes_its_time_and_sends_every_action():
    env, robot, clock = make_env(max_steps=60)
    data = env.rollout(100, constant(0.5, -0.5))
    assert data.shape == (1, 60)
    assert clock.now_s() == pytest.approx(2.0)
    assert [action.tolist() for _, action in robot.sent] == [[0.5, -0.5]] * 60
    instants = torch.tensor([at_s for at_s, _ in robot.sent])
    torch.testing.assert_close(instants.diff(), torch.full((59,), 1 / 30))
    assert data["next", "truncated"].flatten().tolist() == [False] * 59 + [True]


def test_what_reached_the_robot_is_the_next_previous_action():
    env, _, _ = make_env(GateOptions("clip"))
    data = env.rollout(2, constant(3.0, 0.5))
    assert data["action"][0].tolist() == [[3.0, 0.5]] * 2
    assert data["next", "previous_action"][0].tolist() == [[1.0, 0.5]] * 2


def test_the_previous_action_of_a_reset_is_the_measured_position():
    env, _, _ = make_env()
    td = env.reset()
    assert torch.equal(td["previous_action"], td["observation", "state"])


def test_an_action_without_the_observation_that_it_answers_is_refused():
    env, robot, _ = make_env()
    env.reset()
    with pytest.raises(MissingKeyError, match="'session_id' and 'observed_at_s'"):
        env.step(TensorDict({"action": torch.zeros(1, 2)}, [1]))
    assert robot.sent == []


def test_an_action_for_an_earlier_episode_does_not_reach_the_robot():
    env, robot, _ = make_env(GateOptions(watchdog_s=10))
    old = env.reset()
    env.reset()
    env.step(old.set("action", torch.ones(1, 2)))
    assert robot.sent == []
    assert env.gate.log.counts == {("foreign session", "held"): 1}


def test_an_action_that_comes_too_late_is_held():
    env, robot, clock = make_env()
    td = env.step_mdp(env.step(env.reset().set("action", torch.full((1, 2), 0.5))))
    clock.advance_s(0.6)  # a policy in the loop's own thread
    env.step(td.set("action", torch.ones(1, 2)))
    assert [action.tolist() for _, action in robot.sent] == [[0.5, 0.5]] * 2
    assert env.gate.log.counts == {("stale observation", "held"): 1}


def test_the_actions_of_an_old_chunk_are_stale():
    """A chunk of 60 actions at 30 Hz, of which 0.5 s may be executed."""
    env, robot, _ = make_env(GateOptions(max_action_age_s=0.5, watchdog_s=10))
    policy = TensorDictModule(
        lambda state: torch.arange(60.0).div(100).expand(1, 2, 60).mT.clone(),
        [("observation", "state")],
        ["action_chunk"],
    )
    executor = MultiStepActorWrapper(policy)
    TransformedEnv(env, InitTracker()).rollout(20, executor)
    passed = [action[0].item() for _, action in robot.sent]
    torch.testing.assert_close(passed[:16], [i / 100 for i in range(16)])
    torch.testing.assert_close(passed[16:], [0.15] * 4)
    assert env.gate.log.counts == {("stale action", "held"): 4}


def test_a_step_before_the_first_reset_and_a_missing_action_are_refused():
    env, robot, _ = make_env()
    with pytest.raises(ExecutionError, match="before the first reset"):
        env.step(env.fake_tensordict())
    td = env.reset()
    with pytest.raises(MissingKeyError, match="'action'"):
        env.step(td)
    assert robot.sent == []


def test_a_person_ends_an_episode_with_its_outcome():
    env, _, _ = make_env()
    for success in (True, False):
        td = env.reset().set("action", torch.zeros(1, 2))
        assert not td["done"]
        env.finish(success)
        td = env.step(td)["next"]
        assert td["done"].item()
        assert td["terminated"].item()
        assert td["success"].item() is success
        assert td["reward"].item() == success


def test_a_function_of_the_observation_says_success():
    def is_up(observed):
        return bool(observed["observation", "state"][0] > 0.45)

    env, _, _ = make_env(success=is_up, max_steps=9)
    data = env.rollout(9, constant(0.5, 0.0))
    assert data.shape == (1, 1)
    assert data["next", "success"].item()


def test_an_evaluation_runs_on_a_robot_as_on_any_environment():
    def is_up(observed):
        return bool(observed["observation", "state"][0] > 0.9)

    env, robot, _ = make_env(success=is_up, max_steps=5)
    result = evaluate(env, constant(1.0, 0.0), 3, seed=0)
    assert [episode.success for episode in result.episodes] == [True] * 3
    assert len(robot.sent) == 3
    result = evaluate(env, constant(0.0, 0.0), 2, seed=0)
    assert [episode.length for episode in result.episodes] == [5, 5]


def test_a_stopped_robot_ends_an_evaluation_at_once():
    env, robot, _ = make_env(max_steps=5)
    env.gate.stop("button")
    with pytest.raises(RobotStoppedError, match="button"):
        evaluate(env, constant(0.0, 0.0), 3, seed=0, on_error="failure")
    assert robot.sent == []


def test_a_collector_collects_on_a_robot():
    env, robot, _ = make_env(max_steps=4)
    collector = Collector(
        TransformedEnv(env, InitTracker()),
        constant(0.1, 0.2),
        frames_per_batch=8,
        total_frames=8,
    )
    (batch,) = list(collector)
    assert batch["next", "done"].flatten().tolist() == [False] * 3 + [True] + [
        False
    ] * 3 + [True]
    assert len(robot.sent) == 8
    collector.shutdown()
    assert robot.events == ["connect", "disconnect"]


def test_gate_and_loop_with_two_clocks_are_refused():
    gate = SafetyGate(FakeRobot(), clock=FakeClock())
    with pytest.raises(ValueError, match="one clock"):
        RobotEnv(gate, task="wave", loop=ControlLoop(30.0))


def test_a_robot_without_a_gate_gets_one():
    robot = FakeRobot()
    env = RobotEnv(robot, task="wave", max_steps=1)
    env.rollout(1, constant(7.0, 0.0))
    assert robot.sent == []  # beyond the limits, and nothing to hold
    env.close()
    assert robot.events == ["connect", "disconnect"]
