"""Step simulators in worker processes: how observations come back.

    OMP_NUM_THREADS=1 python benchmarks/bench_workers.py

The simulators cost next to nothing (they fill their images with one number), so that
the way from the worker to the caller is what is measured. All deliver the same arrays,
images channels-first: ours turns them on the way, and the simulators of the peers turn
them in their workers. ``SimulatorProcesses`` returns arrays as gymnasium's
``AsyncVectorEnv(shared_memory=True)`` does; ``GymnasiumEnv`` returns tensordicts as
TorchRL's ``ParallelEnv`` and its wrapper of ``AsyncVectorEnv`` do, all with a process
per simulator. The table has milliseconds per step of all simulators; "CPU" is what
caller and workers computed together, which a busy machine does not change as it does
the clock on the wall.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import GymWrapper, ParallelEnv

from torchrl_vla.envs import GymnasiumEnv, SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.envs.simulator_processes import SimulatorProcesses

CAMERAS = ("front", "left", "wrist")
STATE, ACTIONS = 8, 7
SIMULATORS = 2


class Filled(gymnasium.Env):
    """State and images are filled with the number of steps and the action's sum."""

    def __init__(
        self, cameras: tuple[str, ...], size: int, channels_first: bool = False
    ) -> None:
        self.cameras, self.size, self.steps = cameras, size, 0
        self.channels_first = channels_first
        self.action_space = Box(-1.0, 1.0, (ACTIONS,), np.float32)
        shape = (3, size, size) if channels_first else (size, size, 3)
        image = partial(Box, 0, 255, shape, np.uint8)
        self.observation_space = Dict(
            {"state": Box(-np.inf, np.inf, (STATE,), np.float32)}
            | {name: image() for name in cameras}
        )

    def reset(self, *, seed=None, options=None):
        """Begin an episode."""
        self.steps = 0
        return self.observe(0.0), {"is_success": False}

    def step(self, action):
        """Fill everything anew."""
        self.steps += 1
        seen = self.observe(float(action.sum()))
        return seen, float(self.steps), False, False, {"is_success": False}

    def observe(self, value: float) -> dict[str, np.ndarray]:
        """Return state and images."""
        shape = (self.size, self.size, 3)
        images = {
            name: np.full(shape, (self.steps + i) % 256, np.uint8)
            for i, name in enumerate(self.cameras)
        }
        if self.channels_first:
            images = {
                name: np.ascontiguousarray(image.transpose(2, 0, 1))
                for name, image in images.items()
            }
        return {"state": np.full(STATE, self.steps + value, np.float32), **images}


def interface(cameras: tuple[str, ...]) -> SimulatorInterface:
    keys = SimulatorKeys(
        state=("state",), images={name: name for name in cameras} or None
    )
    return SimulatorInterface(keys, "is_success")


class Arrays:
    """Step what takes and returns arrays."""

    def __init__(self, step: Callable[[np.ndarray], dict], close: Callable) -> None:
        self.step, self.close = step, close

    def __call__(self, actions: Tensor) -> dict:
        """Step, and return the observations."""
        return self.step(actions.numpy())


class TensorDicts:
    """Step an environment of TorchRL."""

    def __init__(self, env, rows: int) -> None:
        self.env, self.close = env, env.close
        self.now = env.reset()
        self.rows = rows

    def __call__(self, actions: Tensor) -> TensorDict:
        """Step, and return what it led to."""
        self.now = self.env.step(self.now.set("action", actions))["next"]
        return self.now


def ours_as_arrays(makers: list, cameras: tuple[str, ...]) -> Arrays:
    processes = SimulatorProcesses(makers, interface(cameras), len(makers))
    indices, to_render = list(range(len(makers))), np.ones(len(makers), bool)
    processes.reset(indices, indices)

    def step(actions: np.ndarray) -> dict:
        seen = processes.step(indices, actions, to_render)
        return {  # as AsyncVectorEnv copies
            key: value.copy() if isinstance(key, tuple) else value
            for key, value in seen.items()
        }

    return Arrays(step, processes.close)


def gymnasium_s(makers: list) -> Arrays:
    env = AsyncVectorEnv(makers, shared_memory=True)
    env.reset(seed=0)
    return Arrays(lambda actions: env.step(actions)[0], env.close)


def ours(makers: list, cameras: tuple[str, ...]) -> TensorDicts:
    env = GymnasiumEnv(
        makers,
        interface(cameras),
        instructions="fill",
        options=SimulatorOptions(num_workers=len(makers)),
    )
    return TensorDicts(env, len(makers))


def torchrl_s(makers: list) -> TensorDicts:
    make = [partial(_wrapped, maker) for maker in makers]
    env = ParallelEnv(len(makers), make)
    return TensorDicts(env, len(makers))


def _wrapped(maker: Callable[[], gymnasium.Env]) -> GymWrapper:
    return GymWrapper(maker())


def wrapped_gymnasium(makers: list) -> TensorDicts:
    mode = AutoresetMode.DISABLED  # the only one that TorchRL prefers
    env = AsyncVectorEnv(makers, shared_memory=True, autoreset_mode=mode)
    return TensorDicts(GymWrapper(env), len(makers))


def look(output: dict | TensorDict, cameras: tuple[str, ...]) -> Tensor:
    """Return state and pixels as one vector, whatever they are called."""
    if isinstance(output, TensorDict):
        output = output.flatten_keys()
    last = {
        (key if isinstance(key, str) else ".".join(key)).split(".")[-1]: value
        for key, value in output.items()
    }

    def find(name: str) -> Tensor:
        return torch.as_tensor(last[name] if name in last else last["observation"])

    return torch.cat([find(name).flatten().float() for name in ("state", *cameras)])


def cpu(workers: list[int]) -> float:
    """Return the seconds that this process and its workers have computed."""
    spent = time.process_time()
    for worker in workers:
        nanoseconds = Path(f"/proc/{worker}/schedstat").read_text().split()[0]
        spent += int(nanoseconds) / 1e9
    return spent


def compare(title: str, contestants: dict, cameras: tuple[str, ...], rounds: int):
    """Check that all see the same, and time them step by step."""
    rows = SIMULATORS
    actions = torch.rand(rows, ACTIONS, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        seen = {name: look(run(actions), cameras) for name, run in contestants.items()}
        check_equal(title, seen)
    runs = {name: partial(run, actions) for name, run in contestants.items()}
    workers = [process.pid for process in multiprocessing.active_children()]
    for clock, kind in ((time.perf_counter, ""), (partial(cpu, workers), ", CPU")):
        times = time_in_turns(runs, rounds, repeats=5, clock=clock)
        print_rows(title + kind, times, next(iter(contestants)))
    for run in contestants.values():
        run.close()


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print(f"steps of {SIMULATORS} simulators in worker processes, 1 thread", flush=True)
    print_head("ours")
    for cameras, size in ((CAMERAS, 16 if quick else 256), ((), 1)):
        makers = [partial(Filled, cameras, size)] * SIMULATORS
        turned = [partial(Filled, cameras, size, channels_first=True)] * SIMULATORS
        rounds = 2 if quick else 40
        title = f"{len(cameras)} x {size} px" if cameras else "state only"
        arrays = {
            "ours": ours_as_arrays(makers, cameras),
            "AsyncVectorEnv": gymnasium_s(turned),
        }
        compare(f"arrays, {title}", arrays, cameras, rounds)
        with torch.no_grad():
            whole = {"ours": ours(makers, cameras), "ParallelEnv": torchrl_s(turned)}
            if not quick:
                whole["AsyncVectorEnv"] = wrapped_gymnasium(turned)
            compare(f"dicts, {title}", whole, cameras, rounds)


if __name__ == "__main__":
    main()
