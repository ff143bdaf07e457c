"""Hold a control rate in real time with a policy that takes 150 ms.

    OMP_NUM_THREADS=1 python benchmarks/robot_realtime.py [--seconds 60] [--fifo]

A flow policy is trained on the scripted demonstrations of the simulated SO-101 arm.
It does not see the cubes: every call foresees a way to another place, so its chunks
disagree as those of a policy that changes its mind. A call is stretched to 150 ms; it
runs in a thread while the arm moves at 30 Hz in real time, behind its safety gate.

First the indices are checked: every action that was executed is ``chunk[t -
t_observed]`` of the chunk in execution, for every step, and the chunks are entered in
the order of their calls. Then, for real-time chunking and for the asynchronous
executor without guidance: the rate, the executor's own wall and CPU time per step, and,
on the steps that enter a chunk, in degrees over the five joints, the *seam*, how far
the action lies from what the chunk before had planned for that step, and the *step*,
how far it lies from the action before, motion included.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.data import collect
from torchrl_vla.execution import (
    AsyncExecutor,
    LatencyTracker,
    Lateness,
    RealTimeChunking,
    ThreadWorker,
)
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.policies import BackboneConfig, TinyFlowVLA
from torchrl_vla.recipes import TrainingSettings, train_behavior_cloning
from torchrl_vla.runtime import GateOptions, RobotEnv, SafetyGate, TeleoperatorPolicy
from torchrl_vla.runtime.so101 import SO101Robot, SO101Teleoperator
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.testing import FakeClock

RATE_HZ, LATENCY_S, HORIZON, INTERVAL = 30.0, 0.15, 24, 8
NUM_JOINTS = 6


class StretchedPolicy(TensorDictModuleBase):
    """Call a policy, take a fixed time, and remember every chunk.

    Args:
        policy: in robot space.
        latency_s: of a call.
    """

    def __init__(self, policy: TensorDictModuleBase, latency_s: float) -> None:
        super().__init__()
        self.policy, self.latency_s = policy, latency_s
        self.in_keys = [*policy.in_keys, "observed_at_s"]
        self.optional_in_keys = list(policy.optional_in_keys)
        self.out_keys = list(policy.out_keys)
        self.chunks: list[tuple[float, Tensor]] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's chunk when the time is over."""
        end_s = time.perf_counter() + self.latency_s
        tensordict = self.policy(tensordict)
        observed_at_s = tensordict["observed_at_s"].item()
        self.chunks.append((observed_at_s, tensordict["action_chunk"][0].clone()))
        time.sleep(max(0.0, end_s - time.perf_counter()))
        return tensordict


@dataclass
class Played:
    """What happened in an episode, one entry per step.

    Args:
        actions: the executor's, ``[A]`` each.
        observed_at_s: of each step's observation.
        ages: steps since the observation of the chunk in execution.
        enters: True = the step enters a chunk.
        wall_ms: the executor's own time.
        cpu_ms: CPU time of the control thread in the executor.
    """

    actions: list[Tensor] = field(default_factory=list)
    observed_at_s: list[float] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    enters: list[bool] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def steps_into_chunks(self) -> Tensor:
        """Return how far the action moved on steps that enter a chunk, degrees."""
        steps = [t for t in range(1, len(self.actions)) if self.enters[t]]
        moved = [(self.actions[t] - self.actions[t - 1])[:-1] for t in steps]
        return torch.stack(moved).norm(dim=-1)


def train_policy(robot: SO101Robot, clock: FakeClock, steps: int) -> tuple:
    """Return a flow policy of the arm's demonstrations, and its space."""
    env = RobotEnv(
        SafetyGate(robot, clock=clock),
        task=robot.instruction,
        max_steps=60,
        success=lambda observed: robot.is_successful,
        on_reset=robot.place,
    )
    with SO101Teleoperator(robot) as teleoperator:
        expert = TeleoperatorPolicy(teleoperator, rate_hz=RATE_HZ)
        folder = tempfile.mkdtemp() + "/demonstrations"
        dataset = collect(env, expert, 40, folder=folder, progress=False)
    env.close()
    space = ModelSpace(dataset.metadata)
    policy = TinyFlowVLA(
        action_dim=NUM_JOINTS,
        chunk_size=HORIZON,
        instructions=dataset.instructions,
        backbone=BackboneConfig(state_dim=NUM_JOINTS, cameras=(), hidden=64),
    )
    settings = TrainingSettings(steps=steps)
    train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
    return policy, space


def play(robot: SO101Robot, executor: ChunkExecutor, steps: int) -> tuple:
    """Run one episode in real time; return what happened and the loop's statistics."""
    env = RobotEnv(SafetyGate(robot, GateOptions("clip")), task=robot.instruction)
    data = env.reset(episode_seeds=torch.tensor([7]))
    robot.place(7)
    played = Played()
    for step in range(steps):
        data.set("is_init", torch.full((1, 1), step == 0))
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        with torch.no_grad():
            data = executor(data)
        played.cpu_ms.append(1e3 * (time.thread_time() - cpu_s))
        played.wall_ms.append(1e3 * (time.perf_counter() - wall_s))
        played.actions.append(data["action"][0].clone())
        played.observed_at_s.append(data["observed_at_s"].item())
        played.enters.append(data["is_decision"].item())
        played.ages.append(int(data["observation_age"].item()))
        data = env.step_mdp(env.step(data))
    statistics = env.loop.statistics
    env.close()
    executor.close()
    return played, statistics


def check_indices(name: str, played: Played, chunks: list) -> Tensor:
    """Check that step ``t`` executed ``chunk[t - t_observed]``; return the seams."""
    step_of = {instant: step for step, instant in enumerate(played.observed_at_s)}
    of_step = {step_of[instant]: chunk for instant, chunk in chunks}
    entered: list[int] = []
    seams: list[Tensor] = []
    for step, action in enumerate(played.actions):
        if played.enters[step]:
            if entered and step - entered[-1] < HORIZON:
                planned = of_step[entered[-1]][step - entered[-1]]
                seams.append((action - planned)[:-1].norm())
            entered.append(step - played.ages[step])
        expected = of_step[entered[-1]][step - entered[-1]]
        assert torch.equal(action, expected), f"{name}: step {step}"
    assert entered == sorted(set(entered)), f"{name}: {entered}"
    return torch.stack(seams)


def make_executors(space: ModelSpace, policy: TensorDictModuleBase) -> dict:
    """Return the two executors, each with a policy of its own in a thread."""
    lateness = Lateness("hold", timeout_s=2.0, position=("observation", "state"))
    made = {}
    for name in ("real-time chunking", "asynchronous, unguided"):
        stretched = StretchedPolicy(space.robot_policy(policy), LATENCY_S)
        options = {
            "action_reference": "absolute",
            "worker": ThreadWorker(),
            "when_late": lateness,
        }
        delay = LatencyTracker.from_seconds(LATENCY_S, RATE_HZ)
        executor = (
            RealTimeChunking(
                stretched, replan_interval=INTERVAL, inference_delay=delay, **options
            )
            if name.startswith("real")
            else AsyncExecutor(stretched, request_at=HORIZON - INTERVAL, **options)
        )
        made[name] = executor, stretched
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--fifo",
        action="store_true",
        help="real-time scheduling, as a robot's process has it: on a busy machine the "
        "wall times are those of the machine otherwise; needs the right to ask for it",
    )
    arguments = parser.parse_args()
    seconds = 1.5 if arguments.quick else arguments.seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = FakeClock()
    policy, space = train_policy(
        SO101Robot(cameras=(), clock=clock), clock, 20 if arguments.quick else 600
    )
    if arguments.fifo:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"{seconds:.0f} s at {RATE_HZ:.0f} Hz, policy of {1e3 * LATENCY_S:.0f} ms; ")
    print(f"1 thread, load of {load:.1f} per core before")
    print(f"{'executor':<24} {'rate':>6} {'seams':>6} {'held':>5} ", end="")
    print("wall p50   p99  CPU p50  p99 ms  seam mean   p95  step mean   p95 deg")
    mean = {}
    for name, (executor, stretched) in make_executors(space, policy).items():
        torch.manual_seed(0)
        robot = SO101Robot(cameras=())
        played, statistics = play(robot, executor, round(seconds * RATE_HZ))
        seams = check_indices(name, played, stretched.chunks)
        wall, cpu = (torch.tensor(x[1:]) for x in (played.wall_ms, played.cpu_ms))
        moved = played.steps_into_chunks()
        mean[name] = seams.mean().item()
        print(
            f"{name:<24} {statistics.rate_hz:6.2f} {len(seams):6d} "
            f"{executor.holds:5d} {wall.quantile(0.5):8.2f} {wall.quantile(0.99):6.2f} "
            f"{cpu.quantile(0.5):8.2f} {cpu.quantile(0.99):4.2f} "
            f"{mean[name]:12.2f} {seams.quantile(0.95):6.2f} "
            f"{moved.mean():9.2f} {moved.quantile(0.95):6.2f}"
        )
    ratio = mean["real-time chunking"] / mean["asynchronous, unguided"]
    print(f"seam, guided / unguided: {ratio:.2f}")


if __name__ == "__main__":
    main()
