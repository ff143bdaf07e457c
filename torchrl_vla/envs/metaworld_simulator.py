"""Seeded gymnasium environment of MetaWorld's tasks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Text

from torchrl_vla.envs.metaworld_tasks import INSTRUCTIONS
from torchrl_vla.envs.mujoco_renderer import MujocoRenderer, RenderingError
from torchrl_vla.schema import import_extra

STATE_DIM = 39


@dataclass
class Simulator:
    """One task's simulation, and the renderer of its cameras if it has any."""

    task: str
    env: Any
    renderer: MujocoRenderer | None


@dataclass
class SimulatorPool:
    """Lend simulators to the environments of a process, one task each.

    A simulator takes 25 MB and a fifth of a second to make. Environments that change
    their task at a reset share them through a pool: there are about as many as
    environments, and not one per environment and task.

    Args:
        cameras: names of the cameras to render.
        image_size: side of the images in pixels.
        camera_positions: of cameras that are moved, ``{camera: (x, y, z)}`` in m.
    """

    cameras: tuple[str, ...] = ()
    image_size: int = 64
    camera_positions: Mapping[str, tuple[float, float, float]] = field(
        default_factory=dict
    )
    _free: dict[str, list[Simulator]] = field(default_factory=dict)

    def take(self, task: str) -> Simulator:
        """Lend a simulator of the task, a new one if none is free."""
        free = self._free.setdefault(task, [])
        return free.pop() if free else self._make(task)

    def give_back(self, simulator: Simulator) -> None:
        """Take a simulator back, to lend it again."""
        self._free.setdefault(simulator.task, []).append(simulator)

    def close(self) -> None:
        """Free the graphics of the simulators that are not lent."""
        for simulators in self._free.values():
            for simulator in simulators:
                if simulator.renderer is not None:
                    simulator.renderer.close()

    def _make(self, task: str) -> Simulator:
        classes = import_extra("metaworld.env_dict", "metaworld", "MetaWorldEnv")
        env = classes.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Show the goal. The bounds that step() clips the observation to are cached
        # with a hidden goal, that is with zeros, and have to be made again.
        env._partially_observable = False
        del env.sawyer_observation_space
        # Sample the initial state from the simulator's own generator.
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._set_task_called = True
        env.max_path_length = sys.maxsize  # the time limit is ours
        for camera, position in self.camera_positions.items():
            env.model.camera(camera).pos[:] = position
        renderer = None
        if self.cameras:
            renderer = MujocoRenderer(env.model, self.cameras, self.image_size)
        return Simulator(task, env, renderer)


class SawyerTasks(gymnasium.Env):
    """Run episodes of MetaWorld tasks, each a pure function of its seed.

    The task of an episode is ``tasks[seed % len(tasks)]``: consecutive seeds take
    turns. Observations are ``{"state": float64 [39], "instruction": text}``; images
    are rendered by :meth:`render_images` alone.

    Args:
        tasks: names without version.
        pool: where the simulators come from; shared within a process.
        one_image: True = the pool's one camera is the image itself.
        stop_on_success: terminate at success.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        pool: SimulatorPool,
        one_image: bool = False,
        stop_on_success: bool = True,
    ) -> None:
        self._tasks, self._pool = tuple(tasks), pool
        self._one_image, self._stop_on_success = one_image, stop_on_success
        self._lent = pool.take(self._tasks[0])
        self.action_space = self._lent.env.action_space
        self.observation_space = gymnasium.spaces.Dict(
            state=Box(-np.inf, np.inf, (STATE_DIM,)), instruction=Text(max_length=99)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, object]]:
        """Begin the episode of ``seed``, or of one drawn from the last seed."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._pool.give_back(self._lent)
        self._lent = self._pool.take(self._tasks[seed % len(self._tasks)])
        self._lent.env.seed(seed)  # its reset() ignores the seed
        state, info = self._lent.env.reset()
        return self._observe(state), info

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, object], float, bool, bool, dict[str, object]]:
        """Execute one action."""
        state, reward, _, _, info = self._lent.env.step(action)
        ended = self._stop_on_success and bool(info["success"])
        return self._observe(state), float(reward), ended, False, info

    def render_images(self) -> np.ndarray | dict[str, np.ndarray]:
        """Return uint8 ``[h, w, 3]`` of the one camera, or ``{camera: image}``."""
        if self._lent.renderer is None:
            raise RenderingError("MetaWorldEnv: expected cameras=, got none.")
        images = self._lent.renderer.render(self._lent.env.data)
        return images.popitem()[1] if self._one_image else images

    def close(self) -> None:
        """Free the graphics."""
        self._pool.give_back(self._lent)
        self._pool.close()

    def _observe(self, state: np.ndarray) -> dict[str, object]:
        return {"state": state, "instruction": INSTRUCTIONS[self._lent.task]}
