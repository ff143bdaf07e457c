from __future__ import annotations

import os
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from gym_aloha.constants import ACTIONS, ASSETS_DIR, JOINTS

from torchrl_vla.envs import AlohaEnv, AlohaTask, RenderingError
from torchrl_vla.envs.aloha import ALOHA_INSTRUCTIONS
from torchrl_vla.schema import MissingExtraError
from torchrl_vla.testing import check_env

REST = torch.tensor([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.1] * 2)


@pytest.mark.parametrize("task", get_args(AlohaTask))
def test_the_contract_of_an_environment_holds(task):
    # Actions at random make the arms' simulation unstable from some states.
    env = AlohaEnv(task, num_envs=2, images=False, max_steps=5, seed=0)
    check_env(env, max_steps=5)
    env.close()


@pytest.mark.usefixtures("opengl")
def test_the_contract_holds_with_images():
    env = AlohaEnv(num_envs=2)
    check_env(env)
    image = env.reset()["observation", "image", "top"]
    assert image.shape == (2, 3, 480, 640)
    env.close()


@pytest.mark.usefixtures("opengl")
def test_the_seed_says_where_the_cube_lies():
    env = AlohaEnv("transfer_cube", num_envs=3)
    td = env.reset(episode_seeds=torch.tensor([1, 2, 1]))
    top = td["observation", "image", "top"]
    assert torch.equal(top[0], top[2])
    # The cube alone is red: 1 and 2 put it elsewhere.
    red = (top[:, 0].int() - top[:, 1] > 100) & (top[:, 0].int() - top[:, 2] > 100)
    places = [mask.nonzero().float().mean(0) for mask in red]
    assert (places[0] - places[1]).norm() > 10
    env.close()


@pytest.mark.usefixtures("opengl")
def test_quick_rendering_shows_nearly_the_same_image():
    images = []
    for quick in (False, True):
        env = AlohaEnv(quick_rendering=quick)
        td = env.reset(episode_seeds=torch.tensor([1]))
        images.append(td["observation", "image", "top"].float())
        env.close()
    difference = (images[0] - images[1]).abs()
    assert 0 < difference.mean() < 3  # of 255


@pytest.mark.usefixtures("opengl")
def test_a_failing_graphics_library_is_a_rendering_error():
    env = AlohaEnv()

    def fail(*args, **kwargs):
        raise AttributeError("no _ptr")

    env._simulators._envs[0]._render = fail
    with pytest.raises(RenderingError, match=r"AttributeError: no _ptr.*images=False"):
        env.reset()


def test_the_environment_s_variables_stay_as_they_are(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    AlohaEnv(images=False).close()
    assert "MUJOCO_GL" not in os.environ


def test_actions_are_executed_beyond_the_bounds_that_the_package_declares():
    env = AlohaEnv(images=False)
    td = env.reset()
    action = REST.clone()
    action[0] = 1.5  # the package's space ends at 1
    for _ in range(60):
        td = env.step(td.set("action", action[None]))["next"]
    assert td["observation", "state"][0, 0] == pytest.approx(1.5, abs=0.1)
    env.close()


def test_holding_still_is_no_success():
    env = AlohaEnv("transfer_cube", images=False, max_steps=3)
    td = env.reset()
    assert torch.allclose(td["observation", "state"][0], REST, atol=1e-3)
    for _ in range(3):
        td = env.step(td.set("action", REST[None]))["next"]
        assert not td["success"].any()
        assert td["reward"].item() == 0
    assert td["truncated"].item()
    env.close()


def test_the_largest_reward_is_a_success_that_ends_the_episode(monkeypatch):
    env = AlohaEnv("insertion", images=False)
    td = env.reset()
    task = env._simulators._envs[0]._simulation.task
    for reward, done in ((3, False), (4, True)):
        monkeypatch.setattr(task, "get_reward", lambda physics, value=reward: value)
        td = env.step(td.set("action", REST[None]))["next"]
        assert td["reward"].item() == reward
        assert td["success"].item() == td["terminated"].item() == done
    env.close()


def test_every_episode_is_told_what_the_datasets_say():
    for task in get_args(AlohaTask):
        env = AlohaEnv(task, images=False)
        assert env.instructions.texts == (ALOHA_INSTRUCTIONS[task],)
        env.close()
    env = AlohaEnv(images=False, instruction="join them")
    assert env.instructions.texts == ("join them",)
    assert env.max_steps == 400


def test_metadata_names_every_joint_in_the_package_s_order():
    metadata = AlohaEnv(images=False).metadata
    package = [
        [name.replace("_arm", "") for name in part] for part in (JOINTS, ACTIONS)
    ]
    assert [list(metadata.state_names), list(metadata.action_names)] == package
    assert metadata.gripper_dims == (6, 13)
    assert metadata.action_units[5:8] == ("rad", "1", "rad")
    assert metadata.control_frequency_hz == 50.0
    assert metadata.cameras == ()


def test_the_bounds_are_those_of_the_motors():
    from dm_control import mujoco

    metadata = AlohaEnv(images=False).metadata
    model = mujoco.Physics.from_xml_path(
        str(ASSETS_DIR / "bimanual_viperx_insertion.xml")
    ).model
    motors = np.r_[0:6, 8:14]  # between them, two fingers of each gripper
    joints = np.r_[0:6, 7:13]
    low, high = model.actuator_ctrlrange[motors].T
    assert np.array(metadata.action_low)[joints].tolist() == low.tolist()
    assert np.array(metadata.action_high)[joints].tolist() == high.tolist()
    grippers = list(metadata.gripper_dims)
    assert np.array(metadata.action_low)[grippers].tolist() == [0, 0]
    assert np.array(metadata.action_high)[grippers].tolist() == [1, 1]


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"\('insertion', 'transfer_cube'\), got 'tie'"
    ):
        AlohaEnv("tie")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_aloha", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[aloha\]"):
        AlohaEnv()
