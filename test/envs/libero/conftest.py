from __future__ import annotations

import pytest
import torch

from torchrl_vla.envs import LiberoEnv, LiberoProtocol, SimulatorOptions

SIZE = 32


@pytest.fixture(scope="session")
def butter(opengl):
    """One environment for all tests: a simulation takes seconds to build."""
    env = LiberoEnv(
        "object",
        [6],
        image_size=SIZE,
        protocol=LiberoProtocol(settle_steps=2),
        options=SimulatorOptions(render_on_demand=True),
    )
    yield env
    env.close()


@pytest.fixture
def play():
    """Play random actions from a seed; returns the observations, ``[T, N, ...]``."""

    def run(env, seed, steps):
        generator = torch.Generator().manual_seed(0)
        td = env.reset(episode_seeds=torch.tensor([seed]))
        seen = [td["observation"].clone()]
        for _ in range(steps):
            td["action"] = 2 * torch.rand(1, 7, generator=generator) - 1
            td = env.step(td)["next"]
            seen.append(td["observation"].clone())
        return torch.stack(seen)

    return run
