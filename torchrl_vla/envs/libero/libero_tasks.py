"""Seeded gymnasium environment of LIBERO's tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Text

from torchrl_vla.envs.libero.libero_grasps import find_grasp
from torchrl_vla.envs.libero.libero_protocol import LiberoProtocol
from torchrl_vla.envs.libero.libero_provider import LiberoProvider, LiberoTask
from torchrl_vla.envs.libero.libero_script import PickAndPlace
from torchrl_vla.envs.libero.libero_simulator import LiberoSimulation
from torchrl_vla.rollout import seed_purpose


@dataclass
class LiberoPool:
    """Lend simulations to the environments of a process, one task each.

    A simulation takes 400 MB and two seconds to build, so it is built when the first
    episode of its task begins, and used again for all that follow.

    Args:
        provider: builds them.
        protocol: of the episodes.
        cameras: to render.
        image_size: side of the images in pixels.
    """

    provider: LiberoProvider
    protocol: LiberoProtocol
    cameras: tuple[str, ...] = ()
    image_size: int = 128
    _free: dict[LiberoTask, list[LiberoSimulation]] = field(default_factory=dict)

    def take(self, task: LiberoTask) -> LiberoSimulation:
        """Lend a simulation of the task, a new one if none is free."""
        free = self._free.setdefault(task, [])
        if free:
            return free.pop()
        return LiberoSimulation(
            self.provider, task, self.protocol, self.cameras, self.image_size
        )

    def give_back(self, simulation: LiberoSimulation) -> None:
        """Take a simulation back, to lend it again."""
        self._free.setdefault(simulation.task, []).append(simulation)

    def close(self) -> None:
        """Free the graphics of the simulations that are not lent."""
        for simulations in self._free.values():
            for simulation in simulations:
                simulation.close()


class LiberoTasks(gymnasium.Env):
    """Run episodes of LIBERO tasks, each a pure function of its seed.

    Consecutive episodes take turns through the tasks: episode ``i`` of a run has task
    ``i % len(tasks)``. In evaluations it begins from official initial state
    ``i // len(tasks)``, otherwise from one that LIBERO's sampler draws with the seed.

    Args:
        tasks: of one suite.
        pool: where the simulations come from; shared within a process.
    """

    def __init__(self, tasks: tuple[LiberoTask, ...], pool: LiberoPool) -> None:
        self._tasks, self._pool = tasks, pool
        self._lent: LiberoSimulation | None = None
        self._script: PickAndPlace | None = None
        self._plan: np.ndarray | None = None
        size = 8 if pool.protocol.rotation == "axis_angle" else 9
        self.action_space = Box(-1.0, 1.0, (7,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            state=Box(-np.inf, np.inf, (size,)), instruction=Text(max_length=300)
        )

    @property
    def simulation(self) -> LiberoSimulation:
        """The simulation of the running episode."""
        if self._lent is None:
            raise RuntimeError("LiberoTasks: expected reset() first, got none.")
        return self._lent

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, object]]:
        """Begin the episode of ``seed``, or of one drawn from the last seed."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        purpose, index = seed_purpose(seed)
        task = self._tasks[index % len(self._tasks)]
        if self._lent is None or self._lent.task != task:
            if self._lent is not None:
                self._pool.give_back(self._lent)
            self._lent = self._pool.take(task)
        if purpose == "evaluation":
            self._lent.begin_official(index // len(self._tasks))
        else:
            self._lent.begin_sampled(seed)
        self._script = self._plan = None
        return self._observe(), {"success": self._lent.is_done()}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, object], float, bool, bool, dict[str, object]]:
        """Execute one action."""
        success = self.simulation.step(action)
        self._plan = None
        return self._observe(), float(success), success, False, {"success": success}

    def render_images(self) -> dict[str, np.ndarray]:
        """Return ``{camera: uint8 [h, w, 3]}``."""
        return self.simulation.render()

    def privileged(self) -> np.ndarray:
        """Return the scripted expert's next action and its part of the noise, ``[8]``.

        The script reads the simulation, and remembers what it is about to do; asked
        twice before a step, it says the same.
        """
        if self._script is None:
            self._script = PickAndPlace(
                self.simulation, find_grasp(self.simulation.task)
            )
        if self._plan is None:
            bears = self._script.noise_scale
            self._plan = np.append(self._script.act(), bears)
        return self._plan

    def close(self) -> None:
        """Free the graphics."""
        if self._lent is not None:
            self._pool.give_back(self._lent)
            self._lent = None
        self._pool.close()

    def _observe(self) -> dict[str, object]:
        simulation = self.simulation
        return {
            "state": simulation.state(),
            "instruction": simulation.task.instruction,
        }
