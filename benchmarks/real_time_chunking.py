"""Hold a control rate with a policy that is slower than it.

    OMP_NUM_THREADS=1 python benchmarks/real_time_chunking.py

A policy that takes 150 ms acts at 30 Hz: within the step, in a thread and in a
process. Before anything is timed, real-time chunking must send the same actions within
the step and with an answer that arrives early. In real time every action is compared
with the chunk that it is from: an index that is repeated or skipped ends the run.

Printed are the executor's own time per step (wall and CPU time of the control thread),
the steps whose period was missed by more than a half, late steps, and the jump where
chunks meet, in units of that of the unguided asynchronous executor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.execution import (
    AsyncExecutor,
    LatencyTracker,
    Lateness,
    ProcessWorker,
    RealTimeChunking,
    StepClockWorker,
    ThreadWorker,
)

RATE_HZ, LATENCY_S, CHUNK, INTERVAL = 30, 0.15, 30, 10
DELAY = LatencyTracker.from_seconds(LATENCY_S, RATE_HZ).delay_steps
ABSOLUTE = {"action_reference": "absolute"}


class SlowPolicy(TensorDictModuleBase):
    """Plan a smooth motion of any phase; follow a guide as far as its weight says.

    The chunk is written twice, so that the rollout says from which chunk an action is.
    """

    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self.latency_s = latency_s
        self.in_keys = [("observation", "state")]
        self.optional_in_keys = ["guide_chunk", "guide_weight"]
        self.out_keys = ["action_chunk", "plan"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the chunk, not before its time."""
        ready = time.monotonic() + self.latency_s
        phase = 2 * torch.pi * torch.rand(*tensordict.batch_size, 1, 6)
        plan = (phase + 0.1 * torch.arange(CHUNK).view(-1, 1)).sin()
        guide = tensordict.get("guide_chunk", None)
        if guide is not None:
            weight = tensordict["guide_weight"].unsqueeze(-1)
            plan = weight * guide + (1 - weight) * plan
        tensordict["action_chunk"] = tensordict["plan"] = plan
        time.sleep(max(0.0, ready - time.monotonic()))
        return tensordict


def observe(step: int) -> TensorDict:
    """Return what the robot sees."""
    generator = torch.Generator().manual_seed(step)
    td = TensorDict({("observation", "state"): torch.rand(1, 6, generator=generator)})
    td.batch_size = [1]
    return td.set("is_init", torch.tensor([[step == 0]]))


def chunking(
    policy: SlowPolicy, worker: object = None, is_measured: bool = False
) -> RealTimeChunking:
    """Return the guided executor, with the expected or the measured delay."""
    return RealTimeChunking(
        policy,
        replan_interval=INTERVAL,
        inference_delay=LatencyTracker(DELAY) if is_measured else DELAY,
        worker=worker,
        when_late=Lateness("hold", max_late_steps=RATE_HZ),
        **ABSOLUTE,
    )


def unguided(policy: SlowPolicy) -> AsyncExecutor:
    """Return the executor that plans as often, and guides nothing."""
    return AsyncExecutor(
        policy,
        request_at=CHUNK - INTERVAL,
        worker=ThreadWorker(),
        when_late=Lateness("hold", max_late_steps=RATE_HZ),
        **ABSOLUTE,
    )


def check_equality(steps: int) -> None:
    """Refuse to time executors that send other actions."""
    played = []
    for worker in (None, StepClockWorker(0), StepClockWorker(DELAY)):
        executor = chunking(SlowPolicy(0.0), worker)
        torch.manual_seed(1)
        with torch.no_grad():
            played.append([executor(observe(step))["action"] for step in range(steps)])
    for other in played[1:]:
        assert torch.equal(torch.stack(played[0]), torch.stack(other))


@dataclass
class Run:
    """What was measured, in milliseconds per step."""

    wall: torch.Tensor
    cpu: torch.Tensor
    missed: int
    late: int
    seam: float


def play(executor: RealTimeChunking | AsyncExecutor, steps: int) -> Run:
    """Hold the rate; check every index."""
    wall, cpu, jumps, missed = [], [], [], 0
    last, entered, age = None, 0, 0
    with torch.no_grad(), executor:
        td = executor(observe(0))  # waits for the first chunk
        last, begin = td["action"], time.monotonic()
        for step in range(1, steps):
            due = begin + step / RATE_HZ
            time.sleep(max(0.0, due - time.monotonic()))
            missed += time.monotonic() - due > 0.5 / RATE_HZ
            seen = observe(step)
            started, spent = time.perf_counter(), time.thread_time()
            td = executor(seen)
            cpu.append(time.thread_time() - spent)
            wall.append(time.perf_counter() - started)
            if td["is_decision"].item():
                entered, age = step, int(td["observation_age"])
                jumps.append((td["action"] - last).abs().max().item())
            if executor.holds == 0:
                index = age + step - entered
                assert torch.equal(td["action"], td["plan"][:, index]), step
            last = td["action"]
    scale = 1000.0
    seam = sum(jumps) / len(jumps)
    return Run(
        torch.tensor(wall) * scale,
        torch.tensor(cpu) * scale,
        missed,
        executor.holds,
        seam,
    )


def main() -> None:
    """Run all contestants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second of each")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = RATE_HZ if given.quick else int(given.seconds * RATE_HZ)
    check_equality(2 * RATE_HZ)
    contestants: dict[str, Callable] = {
        "asynchronous, thread": unguided,
        "real time, in the step": chunking,
        "real time, thread": lambda policy: chunking(policy, ThreadWorker(), True),
    }
    if not given.quick:
        contestants["real time, process"] = lambda policy: chunking(
            policy, ProcessWorker(), True
        )
    print(
        "| executor | wall ms p50 | p99 | max | CPU ms p99 | missed | late | jump |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    reference = None
    for name, make in contestants.items():
        run = play(make(SlowPolicy(LATENCY_S)), steps)
        reference = run.seam if reference is None else reference
        print(
            f"| {name} | {run.wall.median():.2f} | {run.wall.quantile(0.99):.2f} | "
            f"{run.wall.max():.2f} | {run.cpu.quantile(0.99):.2f} | {run.missed} | "
            f"{run.late} | {run.seam / reference:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
