"""A policy and an environment of a user's own: no base class of ours in the policy."""

from __future__ import annotations

import gymnasium
import numpy as np
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.envs import GymnasiumEnv, SimulatorInterface


class OwnPolicy(nn.Module):
    """Predict a chunk from the state."""

    def __init__(self, action_dim: int, chunk_size: int = 4) -> None:
        super().__init__()
        self.action_dim, self.chunk_size = action_dim, chunk_size
        self.layer = nn.Linear(2, chunk_size * action_dim)

    def forward(self, tensordict):
        chunk = self.layer(tensordict["observation", "state"])
        return chunk.unflatten(-1, (self.chunk_size, self.action_dim))


def make_policy(metadata):
    return OwnPolicy(metadata.action_dim)


class Point(gymnasium.Env):
    """A point in the plane that has to reach the origin."""

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.3 * action, -2, 2).astype(np.float32)
        is_success = bool(np.abs(self.place).max() < 0.25)
        return self.place.copy(), 0.0, is_success, False, {"success": is_success}


class PointEnv(GymnasiumEnv):
    """The point, in a batch, with an expert."""

    def make_expert(self, seed: int = 0) -> TensorDictModule:
        return TensorDictModule(
            lambda state: (-3 * state).clamp(-1, 1),
            in_keys=[("observation", "state")],
            out_keys=["action"],
        )


def make_env(num_envs: int, seed: int | None = None) -> PointEnv:
    return PointEnv(
        Point,
        SimulatorInterface(lambda place: {"state": place}, success_key="success"),
        num_envs=num_envs,
        instructions="go to the origin",
        max_steps=16,
        seed=seed,
    )
