from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from torchrl_vla.envs import PushTEnv
from torchrl_vla.envs.pusht import PUSHT_INSTRUCTION
from torchrl_vla.envs.simulator_interface import SimulatorOptions
from torchrl_vla.schema import MissingExtraError
from torchrl_vla.testing import check_env

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pygame imports what setuptools deprecates
    from gym_pusht.envs import PushTEnv as Package

OBSERVED = {
    "images": {"images": True},
    "corners": {"images": False, "environment_state": True},
    "both": {"images": True, "environment_state": True},
    "on demand": {"images": True, "options": SimulatorOptions(render_on_demand=True)},
}


@pytest.mark.parametrize("kwargs", OBSERVED.values(), ids=OBSERVED)
def test_the_contract_of_an_environment_holds(kwargs):
    env = PushTEnv(num_envs=3, max_steps=5, **kwargs)
    check_env(env, max_steps=5)
    env.close()


@pytest.mark.parametrize("kwargs", OBSERVED.values(), ids=OBSERVED)
def test_observations_and_rewards_are_the_package_s_own(kwargs):
    images = Package(obs_type="pixels_agent_pos")
    corners = Package(obs_type="environment_state_agent_pos")
    env = PushTEnv(**kwargs)
    td = env.reset(episode_seeds=torch.tensor([7]))
    expected = [images.reset(seed=7)[0], corners.reset(seed=7)[0]]
    reward = None
    for action in ((300.0, 200.0), (310.0, 90.0), (250.0, 300.0), None):
        state = torch.tensor(expected[0]["agent_pos"], dtype=torch.float32)
        assert torch.equal(td["observation", "state"][0], state)
        if kwargs["images"]:
            pixels = torch.tensor(expected[0]["pixels"]).permute(2, 0, 1)
            assert torch.equal(td["observation", "image"][0], pixels)
        if kwargs.get("environment_state"):
            block = torch.tensor(expected[1]["environment_state"], dtype=torch.float32)
            assert torch.equal(td["observation", "environment_state"][0], block)
        if reward is not None:
            assert td["reward"].item() == pytest.approx(reward, rel=1e-6)
        if action is None:
            break
        td = env.step(td.set("action", torch.tensor([action])))["next"]
        action = np.array(action, np.float32)
        expected[0], reward, *_ = images.step(action)
        expected[1], *_ = corners.step(action)


def test_actions_beyond_the_board_are_executed_as_they_are():
    env, package = PushTEnv(images=False, environment_state=True), Package()
    td = env.reset(episode_seeds=torch.tensor([1]))
    package.reset(seed=1)
    action = [700.0, -100.0]
    td = env.step(td.set("action", torch.tensor([action])))["next"]
    finger = package.step(np.array(action, np.float32))[0][:2]
    assert torch.equal(
        td["observation", "state"][0], torch.tensor(finger, dtype=torch.float32)
    )
    clipped = Package()
    clipped.reset(seed=1)
    other = clipped.step(np.array([512.0, 0.0], np.float32))[0][:2]
    assert np.abs(finger - other).max() > 10


def test_the_covered_target_is_a_success_that_ends_the_episode():
    env = PushTEnv(images=False, environment_state=True)
    td = env.reset(episode_seeds=torch.tensor([3]))  # the finger is far away
    simulation = env._simulators._envs[0].unwrapped
    simulation.block.angle = simulation.goal_pose[2]
    simulation.block.position = simulation.goal_pose[:2].tolist()
    td = env.step(td.set("action", td["observation", "state"]))["next"]
    assert td["reward"].item() == 1.0
    assert td["success"].item()
    assert td["terminated"].item()
    assert not td["truncated"].item()


def test_episodes_last_300_steps_unless_told_otherwise():
    assert PushTEnv(images=False, environment_state=True).max_steps == 300


def test_every_episode_is_told_what_the_datasets_say():
    env = PushTEnv(num_envs=2)
    ids = env.reset()["language_instruction"]
    assert env.instructions.decode(ids) == [PUSHT_INSTRUCTION] * 2
    env = PushTEnv(instruction="push the T")
    assert env.instructions.texts == ("push the T",)


def test_images_have_the_size_that_was_asked_for():
    env = PushTEnv(image_size=32)
    assert env.reset()["observation", "image"].shape == (1, 3, 32, 32)


def test_metadata_says_what_an_action_is():
    metadata = PushTEnv().metadata
    assert metadata.action_high == (512.0, 512.0)
    assert metadata.action_low == (0.0, 0.0)
    assert metadata.action_reference == ("absolute", "absolute")
    assert metadata.control_frequency_hz == 10.0
    assert metadata.cameras == ("image",)
    env = PushTEnv(images=False, environment_state=True)
    assert env.metadata.cameras == ()
    assert env.action_spec.space.high.tolist() == [[512.0, 512.0]]


def test_workers_return_what_one_process_returns():
    rollouts = []
    for workers in (0, 1):
        env = PushTEnv(
            num_envs=2,
            environment_state=True,
            options=SimulatorOptions(num_workers=workers),
            image_size=16,
        )
        td = env.reset(episode_seeds=torch.tensor([4, 5]))
        for _ in range(2):
            td = env.step(td.set("action", 300 + td["observation", "state"] / 8))[
                "next"
            ]
        rollouts.append(td)
        env.close()
    assert (rollouts[0] == rollouts[1]).all()


def test_an_environment_that_shows_no_block_is_refused():
    with pytest.raises(ValueError, match=r"images=True and/or environment_state=True"):
        PushTEnv(images=False)


def test_making_one_prints_nothing():
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        "from torchrl_vla.envs.pusht import PushTSimulator\n"
        "PushTSimulator(32)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[pusht\]"):
        PushTEnv()
