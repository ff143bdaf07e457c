from __future__ import annotations

import os
import signal
import sys
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.envs.simulators import SimulationError
from torchrl_vla.schema import SchemaError

CAMERAS = {"front": "front", "wrist": "wrist"}
SEEDS = torch.tensor([3, 4, 5])
COUNT = 3


class Painter(gymnasium.Env):
    """Images and state are numbers made of the seed, the steps and the actions."""

    def __init__(self, side=5, breaks=False, camera=True):
        self.side, self.breaks, self.camera = side, breaks, camera
        self.action_space = Box(-1.0, 1.0, (2,))
        images = {name: Box(0, 255, (side, side + 1, 3), np.uint8) for name in CAMERAS}
        state = Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(state=state, **images)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps, self.moved = seed, 0, 0.0
        return self.observe(), {"is_success": False}

    def step(self, action):
        self.steps += 1
        self.moved += float(action.sum())
        if self.breaks and self.steps == 2:
            raise OverflowError("the arm fell off")
        return self.observe(), self.moved, False, False, {"is_success": self.steps == 3}

    def observe(self):
        state = np.array([self.steps, self.moved], np.float32)
        return {"state": state, **(self.paint() if self.camera else {})}

    def paint(self):
        shape = (self.side, self.side + 1, 3)
        number = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        return {
            name: ((number * (self.seed + 1) + self.steps + i) % 256).astype(np.uint8)
            for i, name in enumerate(CAMERAS)
        }


# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make(num_workers, makers=(Painter,) * COUNT, on_demand=False):
    keys = SimulatorKeys(state=("state",), images=None if on_demand else CAMERAS)
    shape = dict.fromkeys(CAMERAS, (5, 6, 3))
    rendering = RenderSpec(lambda env: env.paint(), shape) if on_demand else None
    return GymnasiumEnv(
        list(makers),
        SimulatorInterface(keys, "is_success", rendering),
        instructions="paint",
        options=SimulatorOptions(num_workers, on_demand),
    )


def act(env, td, mask=None, **entries):
    td = td.clone().set("action", torch.linspace(-1, 1, 2 * COUNT).view(COUNT, 2))
    if mask is not None:
        td["_step"] = torch.tensor(mask)
    return env.step(td.update(entries))["next"]


@pytest.fixture(scope="module")
def workers():
    env = make(2)
    yield env
    env.close()


def test_images_and_numbers_are_those_of_one_process_bit_for_bit(workers):
    here = make(0)
    outputs = []
    for env in (here, workers):
        steps = [env.reset(episode_seeds=SEEDS)]
        masks = (None, [True, False, True], [False, False, True], None, None)
        for mask in masks:
            steps.append(act(env, steps[-1], mask))
        part = steps[-1].clone().set("_reset", torch.tensor([[0], [1], [0]]) > 0)
        steps.append(env.reset(part, episode_seeds=SEEDS + 9))
        steps.append(act(env, steps[-1]))
        outputs.append(steps)
    for one, other in zip(*outputs, strict=True):
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        assert (one == other).all()
    assert torch.equal(here.render(), workers.render())


def test_what_was_returned_stays_as_it_was(workers):
    first = workers.reset(episode_seeds=SEEDS)
    kept = first.clone()
    later = [act(workers, first)]
    copies = [later[0].clone()]
    for _ in range(3):
        later.append(act(workers, later[-1]))
        copies.append(later[-1].clone())
    assert (first == kept).all()
    for one, copy in zip(later, copies, strict=True):
        assert (one == copy).all()


def test_images_rendered_on_demand_are_those_of_one_process():
    makers = [partial(Painter, camera=False)] * COUNT
    outputs = []
    for num_workers in (0, 2):
        env = make(num_workers, makers, on_demand=True)
        steps = [env.reset(episode_seeds=SEEDS)]
        for needed in ([1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]):
            needed = torch.tensor(needed).view(COUNT, 1) > 0
            steps.append(act(env, steps[-1], observation_needed=needed))
        kept = [step.clone() for step in steps]
        steps.append(act(env, steps[-1]))
        env.render()
        for step, copy in zip(steps, kept, strict=False):
            assert (step == copy).all()
        outputs.append(steps)
        env.close()
    for one, other in zip(*outputs, strict=True):
        assert (one == other).all()


def test_an_error_leaves_the_last_outputs_whole():
    env = make(2, [Painter, partial(Painter, breaks=True), Painter])
    before = act(env, env.reset(episode_seeds=SEEDS))
    kept = before.clone()
    with pytest.raises(SimulationError, match="the arm fell off"):
        act(env, before)
    part = before.clone().set("_reset", torch.tensor([[0], [1], [0]]) > 0)
    after = env.reset(part, episode_seeds=SEEDS)
    for row in (0, 2):
        assert (after["observation"][row] == kept["observation"][row]).all()
    env.close()


def test_a_killed_process_starts_again_and_leaves_nothing_behind():
    env = make(2)
    begun = env.reset(episode_seeds=SEEDS)
    expected = act(env, begun)
    process = env._simulators._processes[1]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(SimulationError, match="worker process 1"):
        act(env, begun)
    assert (act(env, env.reset(episode_seeds=SEEDS)) == expected).all()
    handles = len(os.listdir("/proc/self/fd"))
    env.close()
    del env, begun
    assert len(os.listdir("/proc/self/fd")) < handles
    assert not [name for name in os.listdir("/dev/shm") if "observations" in name]


def test_a_process_that_starts_with_other_images_is_refused(tmp_path):
    marker = tmp_path / "started"

    def make_env():
        again = marker.exists()
        marker.touch()
        return Painter(side=7 if again else 5)

    env = make(1, [make_env])
    env.reset()
    env._simulators._processes[0].kill()
    env._simulators._processes[0].join()
    td = env.rand_action()
    with pytest.raises(SimulationError, match="worker process 0"):
        env.step(td)
    with pytest.raises(SchemaError, match=r"\(3, 5, 6\).*started again, got .*3, 7, 8"):
        env.reset()
    env.close()
