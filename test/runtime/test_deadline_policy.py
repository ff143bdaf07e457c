from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.runtime import (
    DeadlinePolicy,
    GateOptions,
    RobotEnv,
    RobotStoppedError,
    SafetyGate,
)
from torchrl_vla.schema import MissingKeyError
from torchrl_vla.testing import FakeClock, FakePolicyWorker, FakeRobot, SlowPolicy

RATE_HZ = 30.0


def make(script, delays_s, options=None):
    clock = FakeClock()
    robot = FakeRobot(clock=clock)
    env = RobotEnv(SafetyGate(robot, options, clock=clock), task="wave")
    policy = DeadlinePolicy(
        SlowPolicy(script), deadline_s=0.02, worker=FakePolicyWorker(clock, delays_s)
    )
    return env, policy, robot, clock


def count_up(call: int) -> torch.Tensor:
    return torch.full((2,), (call + 1) / 10)


def numbers(robot: FakeRobot) -> list[float]:
    return [round(action[0].item(), 4) for _, action in robot.sent]


def test_a_policy_in_time_acts_on_every_step():
    env, policy, robot, _ = make(count_up, [0.01])
    data = env.rollout(4, policy)
    assert numbers(robot) == [0.1, 0.2, 0.3, 0.4]
    assert not data["is_held"].any()
    assert torch.equal(data["answered_at_s"], data["observed_at_s"])


def test_a_late_answer_is_taken_when_it_arrives_with_its_own_instant():
    """The second call takes 75 ms: two steps of 33 ms hold, the third has it."""
    env, policy, robot, _ = make(count_up, [0.0, 0.075, 0.0])
    data = env.rollout(5, policy)
    assert numbers(robot) == [0.1, 0.1, 0.1, 0.2, 0.3]
    assert data["is_held"].flatten().tolist() == [False, True, True, False, False]
    taken = data["observed_at_s"].flatten()
    assert data["answered_at_s"].flatten().tolist() == taken[[0, 1, 1, 1, 4]].tolist()


def test_an_answer_that_is_too_old_when_it_arrives_is_held():
    """0.4 s late is more than the 0.3 s that an observation may be old."""
    options = GateOptions(max_observation_age_s=0.3)
    env, policy, robot, _ = make(count_up, [0.0, 0.4, 0.0], options)
    env.rollout(16, policy)
    held = 13  # 12 late steps, and the one on which the stale answer comes
    assert numbers(robot) == [0.1] * (1 + held) + [0.3, 0.4]
    assert env.gate.log.counts == {
        ("late policy", "held"): 12,
        ("stale observation", "held"): 1,
    }


def test_a_hung_policy_is_held_and_then_stopped_within_the_bound():
    """2 s against a watchdog of 1 s: 29 steps hold, and the next one stops."""
    env, policy, robot, clock = make(count_up, [0.0, 2.0])
    with pytest.raises(RobotStoppedError, match=r"none for 1\.0\d s.*'late policy'"):
        env.rollout(100, policy)
    env.close()
    assert set(numbers(robot)) == {0.1}
    assert 1.0 < clock.now_s() <= 1.0 + 2 / RATE_HZ
    # It kept its rate meanwhile.
    instants = torch.tensor([at_s for at_s, _ in robot.sent])
    assert len(instants) == 30
    torch.testing.assert_close(instants.diff()[1:], torch.full((28,), 1 / RATE_HZ))
    assert robot.events == ["connect", "disconnect"]
    assert env.gate.stopped_by == "watchdog"


def test_a_policy_that_hangs_on_the_first_step_moves_nothing():
    env, policy, robot, clock = make(count_up, [2.0])
    with pytest.raises(RobotStoppedError):
        env.rollout(100, policy)
    assert robot.sent == []
    assert clock.now_s() <= 1.0 + 2 / RATE_HZ


def test_an_answer_for_an_earlier_session_is_dropped():
    env, policy, robot, _ = make(count_up, [0.0, 0.5, 0.0])
    td = env.step_mdp(env.step(policy(env.reset())))
    policy(td)  # in flight
    data = policy(env.reset())
    env.step(data)
    assert numbers(robot) == [0.1, 0.3]
    assert not data["is_held"].any()


def test_an_error_of_the_policy_is_raised_on_the_step_that_waits_for_it():
    def script(call):
        if call == 2:
            raise ConnectionError("the server is gone")
        return count_up(call)

    env, policy, robot, _ = make(script, [0.0])
    with pytest.raises(ConnectionError, match="the server is gone"):
        env.rollout(9, policy)
    env.close()
    assert numbers(robot) == [0.1, 0.2]
    assert robot.events == ["connect", "disconnect"]


def test_an_executor_inside_begins_no_decision_while_it_is_held():
    clock = FakeClock()
    robot = FakeRobot(clock=clock)
    env = RobotEnv(SafetyGate(robot, clock=clock), task="wave")
    chunks = TensorDictModule(
        lambda state: torch.arange(4.0).div(10).expand(1, 2, 4).mT.clone(),
        [("observation", "state")],
        ["action_chunk"],
    )
    worker = FakePolicyWorker(clock, [0.0, 0.0, 0.05, 0.0])
    policy = DeadlinePolicy(
        MultiStepActorWrapper(chunks), deadline_s=0.02, worker=worker
    )
    data = TransformedEnv(env, InitTracker()).rollout(6, policy)
    assert numbers(robot) == [0.0, 0.1, 0.1, 0.2, 0.3, 0.0]
    decided = data["is_decision"].flatten().tolist()
    assert decided == [True, False, False, False, False, True]


def test_a_thread_that_hangs_blocks_neither_the_loop_nor_the_end():
    """In real time: the policy waits for an event that nobody sets meanwhile."""
    release = threading.Event()

    def script(call):
        if call == 3:
            release.wait(30)
        return count_up(call)

    robot = FakeRobot()
    env = RobotEnv(SafetyGate(robot, GateOptions(watchdog_s=0.3)), task="wave")
    policy = DeadlinePolicy(SlowPolicy(script), deadline_s=0.02)
    begun_s = time.monotonic()
    with pytest.raises(RobotStoppedError):
        env.rollout(300, policy)
    env.close()
    policy.close()
    assert time.monotonic() - begun_s < 10
    assert max(numbers(robot)) <= 0.3
    assert robot.events == ["connect", "disconnect"]
    release.set()


def test_gradients_are_off_in_the_thread_where_they_are_off_in_the_loop():
    seen = []

    def script(call):
        seen.append(torch.is_grad_enabled())
        return count_up(call)

    robot = FakeRobot()
    env = RobotEnv(robot, task="wave")
    policy = DeadlinePolicy(SlowPolicy(script), deadline_s=5.0)
    with torch.no_grad():
        policy(env.reset())
    policy.close()
    env.close()
    assert seen == [False]


def test_another_environment_is_refused():
    _, policy, _, _ = make(count_up, [0.0])
    step = TensorDict({"observation": {"state": torch.zeros(1, 2)}}, [1])
    with pytest.raises(MissingKeyError, match="Act in a RobotEnv"):
        policy(step)


def test_a_deadline_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="deadline_s > 0, got 0"):
        DeadlinePolicy(SlowPolicy(count_up), deadline_s=0)


def test_warming_up_calls_the_policy_outside_of_a_session():
    env, policy, robot, _ = make(count_up, [0.0])
    policy.warm_up(env.reset())
    env.rollout(1, policy)
    assert numbers(robot) == [0.2]


OUTPUT = st.one_of(
    st.floats(-1.5, 1.5, width=32), st.sampled_from([math.nan, math.inf])
)


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.lists(OUTPUT, min_size=1, max_size=20),
    delays_s=st.lists(
        st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.7, 1.5]), min_size=1, max_size=8
    ),
    resets=st.sets(st.integers(0, 39), max_size=4),
    mode=st.sampled_from(["hold", "clip"]),
)
def test_whatever_a_policy_does_the_log_is_legal_fresh_and_of_the_session(
    outputs, delays_s, resets, mode
):
    begun: dict[int, float] = {}  # call -> instant of its observation

    def script(call):
        begun[call] = clock.now_s()
        value = outputs[call % len(outputs)]
        return torch.tensor([value, call / 1000])

    options = GateOptions(mode, watchdog_s=0.8)
    env, policy, robot, clock = make(script, delays_s, options)
    td, session_s, fresh = env.reset(), 0.0, set()
    try:
        for step in range(40):
            if step in resets:
                td, session_s, fresh = env.reset(), clock.now_s(), set()
            count = len(robot.sent)
            td = env.step(policy(td))
            for at_s, action in robot.sent[count:]:
                assert action.isfinite().all()
                assert (action.abs() <= 1).all()
                call = round(action[1].item() * 1000)
                assert begun[call] >= session_s, "an action of another session"
                if call not in fresh:  # a hold repeats one that was fresh
                    assert at_s - begun[call] <= 0.5 + 1e-9, "a stale action"
                    assert call == max([*fresh, call]), "an overtaken action"
                fresh.add(call)
            td = env.step_mdp(td)
    except RobotStoppedError:
        assert env.gate.stopped_by == "watchdog"
    last = [at_s for at_s, _ in robot.sent]
    assert len(last) <= 41
