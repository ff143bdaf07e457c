from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from torchrl_vla.envs import AlohaEnv, PushTEnv
from torchrl_vla.policies import LEROBOT_POLICY_TYPES
from torchrl_vla.schema.lerobot_names import to_lerobot

pytestmark = pytest.mark.lerobot

SEEDS = [3, 11]


def play_lerobot(name, actions, **kwargs):
    """Return what LeRobot's evaluation shows a policy at each step, and the rewards."""
    importlib.import_module(f"gym_{name}")
    from lerobot.envs.factory import make_env, make_env_config
    from lerobot.envs.utils import preprocess_observation

    env = make_env(make_env_config(name, **kwargs), n_envs=len(SEEDS))[name][0]
    observation, _ = env.reset(seed=SEEDS)
    shown, rewards = [preprocess_observation(observation)], []
    for action in actions:
        observation, reward, *_ = env.step(action.numpy())
        shown.append(preprocess_observation(observation))
        rewards.append(torch.from_numpy(np.asarray(reward, np.float32)))
    env.close()
    return shown, rewards


def play_ours(env, actions):
    """Return the same of an environment of ours, under LeRobot's names."""
    td = env.reset(episode_seeds=torch.tensor(SEEDS))
    shown, rewards = [as_lerobot(td)], []
    for action in actions:
        td = env.step(td.set("action", action))["next"]
        shown.append(as_lerobot(td))
        rewards.append(td["reward"].squeeze(-1))
    env.close()
    return shown, rewards


def as_lerobot(td):
    out = {}
    for key, value in td.select("observation").items(True, True):
        out[to_lerobot(key)] = value / 255 if value.dtype == torch.uint8 else value
    return out


def assert_same(ours, lerobots):
    for shown, expected in zip(ours[0], lerobots[0], strict=True):
        assert set(shown) == set(expected)
        for name, value in expected.items():
            assert shown[name].dtype == value.dtype == torch.float32
            assert torch.equal(shown[name], value), name
    for reward, expected in zip(ours[1], lerobots[1], strict=True):
        assert torch.equal(reward, expected)


@pytest.mark.parametrize(
    ("obs_type", "kwargs"),
    [
        ("pixels_agent_pos", {}),
        (
            "environment_state_agent_pos",
            {"images": False, "environment_state": True},
        ),
    ],
)
def test_pusht_shows_what_lerobot_s_shows(obs_type, kwargs):
    generator = torch.Generator().manual_seed(0)
    # Some lie beyond the board, as an untrained policy's do.
    actions = 600 * torch.rand(12, 2, 2, generator=generator) - 50
    ours = play_ours(PushTEnv(num_envs=2, **kwargs), actions)
    assert_same(ours, play_lerobot("pusht", actions, obs_type=obs_type))


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize(
    ("task", "name"),
    [("insertion", "AlohaInsertion-v0"), ("transfer_cube", "AlohaTransferCube-v0")],
)
def test_aloha_shows_what_lerobot_s_shows(task, name):
    generator = torch.Generator().manual_seed(0)
    actions = 3 * torch.rand(3, 2, 14, generator=generator) - 1.5
    ours = play_ours(AlohaEnv(task, num_envs=2), actions)
    assert_same(ours, play_lerobot("aloha", actions, task=name))


def test_episodes_are_as_long_as_lerobot_s_at_the_same_rate():
    from lerobot.envs.factory import make_env_config

    for name, env in (
        ("pusht", PushTEnv()),
        ("aloha", AlohaEnv(images=False)),
    ):
        config = make_env_config(name)
        assert env.max_steps == config.episode_length
        assert env.metadata.control_frequency_hz == config.fps
        env.close()


def test_the_policy_types_are_those_that_lerobot_registers():
    import lerobot
    import lerobot.policies.factory  # registers them
    from lerobot.configs.policies import PreTrainedConfig

    minor = ".".join(lerobot.__version__.split(".")[:2])
    choices = PreTrainedConfig.get_known_choices()
    registered = {n for n, k in choices.items() if k.__module__.startswith("lerobot.")}
    assert registered == set(LEROBOT_POLICY_TYPES[minor])
