"""Measure what the safety gate and the environment cost on each step of a robot.

    OMP_NUM_THREADS=1 python benchmarks/bench_robot.py

A fake robot on a fake clock: nothing waits. The baseline observes and sends without a
gate, which nothing in the library does; ratios are against it, measured in turns in the
process's own time. First the robots' logs must be equal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from contest import check_equal, read_quick, record_ratios, time_in_turns
from tensordict.nn import TensorDictModule

from torchrl_vla.runtime import DeadlinePolicy, GateOptions, RobotEnv, SafetyGate
from torchrl_vla.testing import (
    FakeClock,
    FakePolicyWorker,
    FakeRobot,
    FakeRobotOptions,
)

STEPS = 30
ACTIONS = torch.linspace(-0.5, 0.5, STEPS).unsqueeze(-1).expand(STEPS, 4)


def make_robot(image_size: int | None) -> tuple[FakeRobot, SafetyGate]:
    clock = FakeClock()
    options = FakeRobotOptions(num_joints=4, image_size=image_size)
    robot = FakeRobot(options, clock=clock)
    robot.connect()
    limits = GateOptions(max_step=1.0, max_velocity=60.0)
    return robot, SafetyGate(robot, limits, clock=clock)


def play_bare(robot: FakeRobot) -> None:
    for action in ACTIONS:
        robot.observe()
        robot.send(action)


def play_gate(gate: SafetyGate) -> None:
    gate.begin_session()
    for action in ACTIONS:
        gate.send(action, gate.origin_of(gate.observe()))
        gate.clock.advance_s(1 / 30)  # else it would be a burst


def play_env(env: RobotEnv, policy: Callable) -> None:
    td = env.reset()
    for _ in range(STEPS):
        td = env.step_mdp(env.step(policy(td)))


def make_policy() -> TensorDictModule:
    """Give the actions one after the other."""
    script = cycle(ACTIONS.split(1))
    return TensorDictModule(
        lambda state: next(script).clone(), [("observation", "state")], ["action"]
    )


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print(f"FakeRobot, 4 joints, 1 thread, {STEPS} steps; ms per step")
    print(f"{'':<30} {'median':>8}   against no gate: min, median, max")
    for image_size in (None, 16) if quick else (None, 224):
        made = {name: make_robot(image_size) for name in ("bare", "gate", "env", "all")}
        robots = {name: robot for name, (robot, _) in made.items()}
        env, whole = (RobotEnv(made[name][1], task="move") for name in ("env", "all"))
        timed = DeadlinePolicy(
            make_policy(),
            deadline_s=0.02,
            worker=FakePolicyWorker(made["all"][1].clock, [0.0]),
        )
        contestants = {
            "no gate": partial(play_bare, robots["bare"]),
            "gate": partial(play_gate, made["gate"][1]),
            "RobotEnv": partial(play_env, env, make_policy()),
            "RobotEnv, DeadlinePolicy": partial(play_env, whole, timed),
        }
        for play in contestants.values():
            play()
        logs = {
            name: torch.stack([action for _, action in robot.sent])
            for name, robot in robots.items()
        }
        check_equal("sent actions", logs)
        rounds = 1 if quick else 15
        times = time_in_turns(contestants, rounds, clock=time.process_time)
        for name, spent in times.items():
            ratios = [a / b for a, b in zip(spent, times["no gate"])]
            row = f"{image_size or 'no'} px: {name}"
            record_ratios(row, ratios, "no gate")
            print(
                f"{row:<30} {statistics.median(spent) / STEPS:8.3f}   "
                f"{min(ratios):6.2f} {statistics.median(ratios):6.2f} "
                f"{max(ratios):6.2f}"
            )


if __name__ == "__main__":
    main()
