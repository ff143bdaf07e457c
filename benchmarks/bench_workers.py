"""Step simulators in worker processes: how observations come back.

    OMP_NUM_THREADS=1 python benchmarks/bench_workers.py

The simulators cost next to nothing (they fill their images with one number), so that
the way from the worker to the caller is what is measured. gymnasium's
``AsyncVectorEnv(shared_memory=True)`` returns arrays, images channels-last, and
TorchRL's ``ParallelEnv`` tensordicts; ours turns images to channels-first as well. Each
is measured against ours of the same kind: the worker processes alone against
``AsyncVectorEnv``, the environment against ``ParallelEnv`` and against TorchRL's
wrapper of ``AsyncVectorEnv``. Peers have a process per simulator, and so has ours,
except in the rows "2 workers". The table has milliseconds per step of all simulators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import GymWrapper, ParallelEnv

from torchrl_vla.envs import GymnasiumEnv, SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.envs.simulator_processes import SimulatorProcesses

CAMERAS = ("front", "left", "wrist")
STATE, ACTIONS = 8, 7
LONG = 10**9


class Filled(gymnasium.Env):
    """State and images are filled with the number of steps and the action's sum."""

    def __init__(self, cameras: tuple[str, ...], size: int) -> None:
        self.cameras, self.size, self.steps = cameras, size, 0
        self.action_space = Box(-1.0, 1.0, (ACTIONS,), np.float32)
        image = partial(Box, 0, 255, (size, size, 3), np.uint8)
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


def ours_as_arrays(makers: list, cameras: tuple[str, ...], workers: int) -> Arrays:
    processes = SimulatorProcesses(makers, interface(cameras), workers)
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


def ours(makers: list, cameras: tuple[str, ...], workers: int) -> TensorDicts:
    env = GymnasiumEnv(
        makers,
        interface(cameras),
        instructions="fill",
        options=SimulatorOptions(num_workers=workers),
    )
    return TensorDicts(env, len(makers))


def torchrl_s(makers: list) -> TensorDicts:
    make = [partial(_wrapped, maker) for maker in makers]
    env = ParallelEnv(len(makers), make)
    return TensorDicts(env, len(makers))


def _wrapped(maker: Callable[[], gymnasium.Env]) -> GymWrapper:
    return GymWrapper(maker())


def wrapped_gymnasium(makers: list) -> TensorDicts:
    env = AsyncVectorEnv(makers, shared_memory=True)
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
        value = torch.as_tensor(last[name] if name in last else last["observation"])
        return value.movedim(-1, 1) if value.shape[-1] == 3 else value

    return torch.cat([find(name).flatten().float() for name in ("state", *cameras)])


def compare(title: str, contestants: dict, cameras: tuple[str, ...], rounds: int):
    """Check that all see the same, and time them step by step."""
    rows = 4
    actions = torch.rand(rows, ACTIONS, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        seen = {name: look(run(actions), cameras) for name, run in contestants.items()}
        check_equal(title, seen)
    runs = {name: partial(run, actions) for name, run in contestants.items()}
    times = time_in_turns(runs, rounds, repeats=5)
    print_rows(title, times, next(iter(contestants)))
    for run in contestants.values():
        run.close()


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print("steps of 4 simulators in worker processes, 1 thread")
    print_head("ours")
    for cameras, size in ((CAMERAS, 16 if quick else 256), ((), 1)):
        makers = [partial(Filled, cameras, size)] * 4
        rounds = 2 if quick else 60
        title = f"{len(cameras)} x {size} px" if cameras else "state only"
        arrays = {
            "ours": ours_as_arrays(makers, cameras, 4),
            "AsyncVectorEnv": gymnasium_s(makers),
        }
        if not quick:
            arrays["ours, 2 workers"] = ours_as_arrays(makers, cameras, 2)
        compare(f"arrays, {title}", arrays, cameras, rounds)
        with torch.no_grad():
            whole = {"ours": ours(makers, cameras, 4), "ParallelEnv": torchrl_s(makers)}
            if not quick:
                whole["AsyncVectorEnv"] = wrapped_gymnasium(makers)
                whole["ours, 2 workers"] = ours(makers, cameras, 2)
            compare(f"tensordict, {title}", whole, cameras, rounds)


if __name__ == "__main__":
    main()
