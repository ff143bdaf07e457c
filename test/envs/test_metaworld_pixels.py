from __future__ import annotations

import pytest
import torch

from torchrl_vla.envs import MetaWorldEnv, MetaWorldPixelsEnv
from torchrl_vla.envs.metaworld_tasks import DIFFICULTIES, INSTRUCTIONS
from torchrl_vla.envs.simulator_interface import SimulatorOptions

pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def env():
    return MetaWorldPixelsEnv(
        ["reach", "drawer-close"],
        num_envs=2,
        image_size=32,
        max_steps=150,
        options=SimulatorOptions(render_on_demand=True),
    )


def test_the_policy_gets_the_hand_and_the_expert_the_whole_state(env):
    seeds = torch.tensor([4, 5])
    td = env.reset(episode_seeds=seeds)
    whole = MetaWorldEnv(["reach", "drawer-close"], num_envs=2)
    state = whole.reset(episode_seeds=seeds)["observation", "state"]
    assert torch.equal(td["observation", "environment_state"], state)
    assert torch.equal(td["observation", "state"], state[:, :4])
    assert env.metadata.state_names == ("hand_x", "hand_y", "hand_z", "gripper_opening")
    assert env.metadata.state_units == ("m", "m", "m", "1")
    assert env.metadata.cameras == ("corner2",)


def test_the_expert_solves_the_tasks_as_it_does_from_the_full_state(env):
    seeds = torch.tensor([4, 5])
    whole = MetaWorldEnv(["reach", "drawer-close"], num_envs=2, max_steps=150)
    played = []
    for one in (env, whole):
        td = one.reset(episode_seeds=seeds)
        rollout = one.rollout(150, one.make_expert(), tensordict=td, auto_reset=False)
        played.append(rollout["action"])
        assert rollout["next", "success"].any()
    assert torch.equal(*played)


def test_the_camera_is_closer_than_the_package_has_it(env):
    close = env.reset(episode_seeds=torch.tensor([4, 5]))["observation", "image"]
    far_env = MetaWorldEnv(
        ["reach", "drawer-close"], num_envs=2, cameras="corner2", image_size=32
    )
    far = far_env.reset(episode_seeds=torch.tensor([4, 5]))["observation", "image"]
    assert (close.float() - far.float()).abs().mean() > 5


def test_the_difficulties_hold_each_task_once_in_the_published_numbers():
    assert {name: len(tasks) for name, tasks in DIFFICULTIES.items()} == {
        "easy": 28,
        "medium": 11,
        "hard": 6,
        "very hard": 5,
    }
    tasks = [task for group in DIFFICULTIES.values() for task in group]
    assert sorted(tasks) == sorted(INSTRUCTIONS)
    assert {"reach", "peg-unplug-side", "lever-pull"} <= set(DIFFICULTIES["easy"])
