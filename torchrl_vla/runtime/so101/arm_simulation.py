"""Physics of the SO-101 arm with the delays and limits of hardware."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla.runtime.so101.arm_model import JOINTS, import_mujoco
from torchrl_vla.runtime.so101.hardware_effects import HardwareEffects

if TYPE_CHECKING:
    from mujoco import MjModel


class ArmSimulation:
    """Advance the physics to an instant, and remember what sensors may still show.

    Time is counted in steps of the physics from the last reset: the same commands at
    the same instants give the same motion, whatever the clock.

    Args:
        model: the arm's ``mujoco.MjModel``.
        effects: latencies and speed limit.
        oldest_s: age of the oldest positions that are asked for.
    """

    def __init__(
        self, model: MjModel, effects: HardwareEffects, oldest_s: float
    ) -> None:
        self._mujoco = import_mujoco()
        self._model, self.data = model, self._mujoco.MjData(model)
        self._effects = effects
        self._step_s = float(model.opt.timestep)
        self._reach = np.radians(effects.max_speed_deg_s) * self._step_s
        self._past: deque[np.ndarray] = deque(maxlen=self._steps(oldest_s) + 2)
        self._commands: deque[tuple[int, np.ndarray]] = deque()
        self._start_s, self._now = 0.0, 0

    def reset(self, positions: np.ndarray, now_s: float) -> None:
        """Put arm and cubes at rest at ``qpos``, the arm's servos holding it."""
        self._mujoco.mj_resetData(self._model, self.data)
        self.data.qpos[:] = positions
        self._goal = np.array(positions[: len(JOINTS)])
        self.data.ctrl[:] = self._goal
        self._mujoco.mj_forward(self._model, self.data)
        self._start_s, self._now = now_s, 0
        self._commands.clear()
        self._past.clear()
        self._past.append(self.data.qpos.copy())

    def command(self, goal: np.ndarray, now_s: float) -> None:
        """Send the servos a goal, rad ``[6]``."""
        due_s = now_s - self._start_s + self._effects.command_latency_s
        self._commands.append((self._steps(due_s), goal.copy()))

    def advance_to(self, now_s: float) -> None:
        """Run the physics up to an instant; nothing happens where it is past."""
        for _ in range(self._steps(now_s - self._start_s) - self._now):
            while self._commands and self._commands[0][0] <= self._now:
                self._goal = self._commands.popleft()[1]
            control = self.data.ctrl
            control += np.clip(self._goal - control, -self._reach, self._reach)
            self._mujoco.mj_step(self._model, self.data)
            self._now += 1
            self._past.append(self.data.qpos.copy())

    def positions_at(self, instant_s: float) -> np.ndarray:
        """Return ``qpos`` at an instant; that of the reset where it is earlier."""
        age = self._now - self._steps(instant_s - self._start_s)
        return self._past[-1 - min(max(age, 0), len(self._past) - 1)]

    def _steps(self, duration_s: float) -> int:
        return int(np.floor(duration_s / self._step_s + 1e-6))
