"""A robot of four joints that reaches a goal within 20 steps, and variants of it."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from tensordict.nn import TensorDictModule

from torchrl_vla.envs import GymnasiumEnv, SimulatorInterface, SimulatorKeys

JOINTS = 4


class Point(gymnasium.Env):
    action_space = Box(-1.0, 1.0, (JOINTS,), np.float32)
    observation_space = Dict(
        q=Box(-np.inf, np.inf, (JOINTS,), np.float64),
        goal=Box(-1, 1, (JOINTS,), np.float64),
    )

    def obs(self):
        return {"q": self.q.copy(), "goal": self.goal.copy()}

    def info(self, distance):
        return {"success": bool(distance < 0.1)}

    def ends(self, distance):
        return bool(distance < 0.1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.q, self.t = np.zeros(JOINTS), 0
        self.goal = self.np_random.uniform(-1, 1, JOINTS)
        return self.obs(), {}

    def step(self, action):
        self.q = self.q + 0.2 * np.asarray(action, float)
        self.t += 1
        distance = np.abs(self.q - self.goal).max()
        return (
            self.obs(),
            float(-distance),
            self.ends(distance),
            self.t >= 20,
            self.info(distance),
        )


class GoesOn(Point):
    """Success does not end the episode."""

    def ends(self, distance):
        return False


class Diverges(Point):
    """The physics of about one episode of twenty gives NaN after four steps."""

    def obs(self):
        out = super().obs()
        if self.t == 4 and self.goal[0] > 0.9:
            out["q"][0] = np.nan
        return out


def make_point(cls=Point, num_envs=4, max_steps=20, **options):
    success = options.pop("success", None)
    return GymnasiumEnv(
        cls,
        SimulatorInterface(
            SimulatorKeys(state=("q", "goal")),
            None if success else "success",
            success=success,
        ),
        num_envs=num_envs,
        instructions="reach",
        max_steps=max_steps,
        seed=0,
        **options,
    )


def act_by(function, key="action"):
    return TensorDictModule(function, [("observation", "state")], [key])


def towards(state, limit=1.0):
    return ((state[..., JOINTS:] - state[..., :JOINTS]) / 0.2).clamp(-limit, limit)


def stand_still():
    return act_by(lambda state: torch.zeros(*state.shape[:-1], JOINTS))
