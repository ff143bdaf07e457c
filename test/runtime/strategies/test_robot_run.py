from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from robot_runs import make_run, steady
from torchrl.envs import PendulumEnv

from torchrl_vla.runtime import (
    BackgroundRecorder,
    DeadlinePolicy,
    EpisodicRecording,
    PlainRollout,
    RobotRun,
    RobotStoppedError,
    RolloutStrategy,
    run_strategy,
)
from torchrl_vla.schema import (
    ArgumentTypeError,
    IncompatibleMetadataError,
    mark_metadata,
)
from torchrl_vla.testing import FakePolicyWorker, SlowPolicy


class Watched(RolloutStrategy):
    """Note the order of what happens."""

    def __init__(self, robot):
        self.robot, self.seen, self.error = robot, [], None

    def setup(self, run):
        self.seen.append(("setup", list(self.robot.events)))

    def run(self, run):
        for _ in run.episode():
            pass

    def teardown(self, run, error):
        self.seen.append(("teardown", list(self.robot.events)))
        self.error = error


def numbers(robot) -> list[float]:
    return [round(action[0].item(), 4) for _, action in robot.sent]


def test_a_duration_ends_with_the_last_action_and_a_disconnect():
    run, robot = make_run(rate_hz=30.0, duration_s=2.0)
    strategy = Watched(robot)
    run_strategy(strategy, run)
    assert numbers(robot) == [i / 100 for i in range(60)]
    assert strategy.seen == [
        ("setup", []),
        ("teardown", ["connect", "disconnect"]),
    ]
    assert strategy.error is None
    assert run.robot_env.loop.ended_by == "duration"


def test_sigint_ends_with_the_last_action_and_a_disconnect():
    def script(call):
        if call == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return steady(call)

    before = signal.getsignal(signal.SIGINT)
    run, robot = make_run(script=script)
    strategy = Watched(robot)
    run_strategy(strategy, run)
    assert numbers(robot) == [i / 100 for i in range(6)]  # the tick was finished
    assert robot.events == ["connect", "disconnect"]
    assert run.robot_env.loop.ended_by == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is before


def broken_policy(call):
    if call == 3:
        raise ZeroDivisionError("policy")
    return steady(call)


FAULTS = ("policy", "policy thread", "observe", "listener", "recorder thread", "send")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_anywhere_ends_with_a_legal_action_and_a_disconnect(fault):
    broken = fault.startswith("policy")
    run, robot = make_run(script=broken_policy if broken else steady)
    strategy = Watched(robot)
    if fault == "policy thread":
        worker = FakePolicyWorker(robot.clock, [0.0])
        run.policy = DeadlinePolicy(run.policy, deadline_s=0.05, worker=worker)
    if fault == "observe":

        def on_observe(number):
            if number == 4:
                raise ZeroDivisionError("observe")

        robot.on_observe = on_observe
    if fault == "listener":
        run.listeners.append(lambda step: 1 / (len(robot.sent) - 4))
    if fault == "send":
        send = robot.send

        def fail(action):
            if len(robot.sent) == 3:
                raise ZeroDivisionError("send")
            return send(action)

        robot.send = fail
    if fault == "recorder thread":
        has_failed = threading.Event()

        def let_the_thread_go_on(step):  # the fake clock runs ahead of it
            if len(robot.sent) > 2:  # frames wait for it by now
                has_failed.wait(10)
                time.sleep(0.01)

        run.listeners.append(let_the_thread_go_on)

        class Broken:
            num_episodes = num_frames = 0
            ended_as = None

            def add(self, step):
                has_failed.set()
                raise ZeroDivisionError("recorder thread")

            def release(self):
                self.ended_as = "released"

        recorder = BackgroundRecorder(Broken())
        strategy = EpisodicRecording(recorder, 1)
    with pytest.raises(ZeroDivisionError):
        run_strategy(strategy, run)
    assert robot.events == ["connect", "disconnect"]
    assert numbers(robot) == [i / 100 for i in range(len(robot.sent))]
    assert 1 <= len(robot.sent) < 100
    if fault == "recorder thread":
        assert recorder.writer.ended_as == "released"
    else:
        assert isinstance(strategy.error, ZeroDivisionError)
        assert len(robot.sent) in (3, 4)


def test_a_server_that_dies_ends_with_a_legal_action_and_a_disconnect():
    def script(call):
        if call == 4:
            raise ConnectionResetError("the server is gone")
        return steady(call)

    run, robot = make_run(script=script)
    worker = FakePolicyWorker(robot.clock, [0.0])
    run.policy = DeadlinePolicy(run.policy, deadline_s=0.05, worker=worker)
    with pytest.raises(ConnectionResetError):
        run_strategy(PlainRollout(), run)
    assert numbers(robot) == [0.0, 0.01, 0.02, 0.03]
    assert robot.events == ["connect", "disconnect"]


def test_a_server_that_is_silent_is_held_and_then_stopped():
    run, robot = make_run(rate_hz=30.0)
    worker = FakePolicyWorker(robot.clock, [0.0, 0.0, 0.0, 60.0])
    run.policy = DeadlinePolicy(run.policy, deadline_s=0.02, worker=worker)
    with pytest.raises(RobotStoppedError, match="late policy"):
        run_strategy(PlainRollout(), run)
    assert set(numbers(robot)[2:]) == {0.02}
    assert robot.clock.now_s() < 1.2
    assert robot.events == ["connect", "disconnect"]


@pytest.mark.parametrize("waits", [False, True])
def test_a_slow_first_answer_stops_the_robot_unless_it_is_waited_for(waits):
    def script(call):
        if call == 0:  # it connects, compiles, allocates
            run.robot_env.loop.clock.sleep_until_s(6.0)
        return steady(call)

    run, robot = make_run(script=script, duration_s=1.0)
    worker = FakePolicyWorker(robot.clock, [0.0])
    run.policy = DeadlinePolicy(run.policy, deadline_s=0.05, worker=worker)
    if waits:
        run.warm_up()
        run_strategy(PlainRollout(), run)
        assert numbers(robot) == [(1 + i) / 100 for i in range(10)]
        assert run.robot_env.loop.statistics.late == 0
    else:
        with pytest.raises(RobotStoppedError, match=r"watchdog_s=1\.0"):
            run_strategy(PlainRollout(), run)
    assert robot.events == ["connect", "disconnect"]


def test_a_policy_that_fails_while_it_warms_up_leaves_no_robot_connected():
    run, robot = make_run(script=lambda call: 1 / 0)
    run.policy = DeadlinePolicy(run.policy, deadline_s=0.05)
    with pytest.raises(ZeroDivisionError):
        run.warm_up()
    assert robot.events == ["connect", "disconnect"]
    assert robot.sent == []


def test_an_error_of_the_teardown_comes_after_the_disconnect():
    class Bad(Watched):
        def teardown(self, run, error):
            super().teardown(run, error)
            raise OSError("no space left")

    run, robot = make_run(duration_s=0.3)
    strategy = Bad(robot)
    with pytest.raises(OSError, match="no space left"):
        run_strategy(strategy, run)
    assert strategy.seen[-1] == ("teardown", ["connect", "disconnect"])


@pytest.mark.parametrize(
    ("keys", "sent", "ended_by"),
    [({2: ["quit"]}, 3, "quit"), ({4: ["success"]}, 30, "duration")],
)
def test_keys_end_the_run_or_the_episode(keys, sent, ended_by):
    run, robot = make_run(keys=keys, duration_s=3.0)
    strategy = PlainRollout()
    run_strategy(strategy, run)
    assert len(robot.sent) in (sent, sent - 1)  # the step of a reset is a tick, too
    assert run.robot_env.loop.ended_by == ended_by
    assert (strategy.finished, strategy.successes) == ((1, 1) if sent == 30 else (0, 0))


def test_the_stop_key_latches_the_gate():
    run, robot = make_run(keys={2: ["stop"]}, duration_s=3.0)
    with pytest.raises(RobotStoppedError, match="key"):
        run_strategy(PlainRollout(), run)
    assert len(robot.sent) == 3
    assert robot.events == ["connect", "disconnect"]


def test_a_policy_of_another_robot_never_connects():
    run, robot = make_run(duration_s=1.0)
    names = robot.metadata.action_names[::-1]
    mark_metadata(run.policy, replace(robot.metadata, action_names=names))
    with pytest.raises(IncompatibleMetadataError, match="action_names"):
        run_strategy(PlainRollout(), run)
    assert robot.events == []


def test_another_environment_has_no_gate():
    run = RobotRun(PendulumEnv(), SlowPolicy(steady))
    with pytest.raises(ArgumentTypeError, match="Nothing else has a safety gate"):
        run_strategy(PlainRollout(), run)


def test_episodes_are_counted_and_every_first_step_begins_one():
    run, robot = make_run(duration_s=60.0, max_steps=5)
    begins = []
    run.listeners.append(lambda step: begins.append(step["is_init"].item()))
    strategy = PlainRollout(episodes=3)
    run_strategy(strategy, run)
    assert strategy.finished == 3
    assert begins == ([True] + [False] * 4) * 3
    assert len(robot.sent) == 15


PROGRAM = """
import sys, torch
from torchrl_vla.runtime import *
from torchrl_vla.testing import FakeRobot, SlowPolicy
robot = FakeRobot()
gate = SafetyGate(robot, GateOptions(watchdog_s=60))
def script(call):
    if call == 10:
        print("running", flush=True)
    return torch.full((2,), (call % 100) / 100)
policy = DeadlinePolicy(SlowPolicy(script), deadline_s=0.02)
run_strategy(PlainRollout(), RobotRun(RobotEnv(gate, task="wave"), policy))
last = robot.sent[-1][1]
print(robot.events, bool(last.isfinite().all() and last.abs().max() <= 1), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_ends_a_process_in_order(number):
    """In real time, once."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out == "['connect', 'disconnect'] True\n"
    assert process.returncode == 0


def test_the_noise_of_a_sampling_policy_differs_from_step_to_step():
    run, _ = make_run(duration_s=1.0)
    seeds = []
    run.listeners.append(lambda step: seeds.append(step["noise_seed"].item()))
    run_strategy(PlainRollout(), run)
    assert len(set(seeds)) == len(seeds) == 10
    assert torch.tensor(seeds).dtype == torch.int64
