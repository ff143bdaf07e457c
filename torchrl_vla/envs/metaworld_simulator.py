"""One MetaWorld task as a seeded gymnasium environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.mujoco_painter import Painter
from torchrl_vla.schema import import_extra

STATE_DIM = 39


class SawyerTask(gymnasium.Env):
    """Run one MetaWorld task whose episodes are a pure function of their seed.

    Args:
        task: name without version.
        cameras: a name, or several, or ``()``; see :class:`MetaWorldEnv`.
        image_size: side of the images in pixels.
        stop_on_success: terminate at success.
    """

    def __init__(
        self,
        task: str,
        cameras: str | Sequence[str] = (),
        image_size: int = 64,
        stop_on_success: bool = True,
    ) -> None:
        simulator = import_extra(
            "metaworld.env_dict", "metaworld", "MetaWorldEnv"
        ).ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Show the goal. The bounds that step() clips the observation to are cached
        # with a hidden goal, that is with zeros, and have to be made again.
        simulator._partially_observable = False
        del simulator.sawyer_observation_space
        # Draw the initial state from the simulator's own generator.
        simulator._freeze_rand_vec = False
        simulator.seeded_rand_vec = True
        simulator._set_task_called = True
        simulator.max_path_length = sys.maxsize  # the time limit is ours
        self._simulator = simulator
        self._cameras, self._stop_on_success = cameras, stop_on_success
        names = [cameras] if isinstance(cameras, str) else list(cameras)
        self._painter = Painter(simulator.model, names, image_size) if names else None
        self.action_space = simulator.action_space
        picture = Box(0, 255, (image_size, image_size, 3), np.uint8)
        spaces: dict[str, Any] = {"state": Box(-np.inf, np.inf, (STATE_DIM,))}
        if isinstance(cameras, str):
            spaces["image"] = picture
        elif names:
            spaces["image"] = gymnasium.spaces.Dict(dict.fromkeys(names, picture))
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of ``seed``, or the next one of the last seed."""
        if seed is not None:
            self._simulator.seed(seed)  # its reset() ignores the seed
        state, info = self._simulator.reset()
        return self._observe(state), info

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        state, reward, _, _, info = self._simulator.step(action)
        ended = self._stop_on_success and bool(info["success"])
        return self._observe(state), float(reward), ended, False, info

    def close(self) -> None:
        """Free the graphics context."""
        if self._painter is not None:
            self._painter.close()

    def _observe(self, state: np.ndarray) -> dict[str, Any]:
        out: dict[str, Any] = {"state": state}
        if self._painter is not None:
            images = self._painter.draw(self._simulator.data)
            one = isinstance(self._cameras, str)
            out["image"] = images[self._cameras] if one else images
        return out
