from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.data import LeRobotDemonstrations, collect, write_lerobot
from torchrl_vla.envs import LiberoEnv
from torchrl_vla.envs.libero.libero_grasps import GRASPS
from torchrl_vla.rollout import episode_seeds

pytestmark = [pytest.mark.libero, pytest.mark.xdist_group("libero")]


def test_the_expert_is_recorded_with_both_cameras_and_as_a_lerobot_dataset(
    butter, tmp_path
):
    expert = butter.make_expert(noise=0.3, seed=1)
    dataset = collect(butter, expert, 1, folder=tmp_path / "ours", progress=False)
    frames = dataset.frames
    assert bool(frames["next", "success"][-1])
    assert set(frames["observation", "image"].keys()) == {"agentview", "wrist"}
    assert ("observation", "environment_state") not in frames.keys(True)
    assert dataset.metadata.cameras == ("agentview", "wrist")
    folder = write_lerobot(dataset, tmp_path / "lerobot", images="png", progress=False)
    read = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    names = [camera.rpartition(".")[2] for camera in read.cameras]
    assert names == ["agentview", "wrist"]
    rows = read.replay_buffer(1)[torch.arange(len(read))]
    for key in ("action", ("observation", "image", "wrist")):
        assert torch.equal(rows[key], frames[key])


def test_noise_pushes_the_executed_action_and_rests_while_the_fingers_close(butter):
    butter.reset(episode_seeds=torch.tensor(episode_seeds(0, 1, "evaluation")))
    tasks = butter._simulators._envs[0]
    clean, noisy = (
        butter.make_expert(noise=noise, seed=3)(TensorDict({}, [1]))
        for noise in (0.0, 0.3)
    )
    assert (clean["action"] == clean["expert_action"]).all()
    assert (noisy["expert_action"] == clean["expert_action"]).all()
    moved = noisy["action"] - noisy["expert_action"]
    assert (moved[:, :3] != 0).any()
    assert (moved[:, 6] == 0).all()
    tasks._plan = np.append(tasks._plan[:7], 0.0)  # as in the phase of closing
    still = butter.make_expert(noise=0.3)(TensorDict({}, [1]))
    assert (still["action"] == still["expert_action"]).all()


def test_a_task_without_a_script_is_refused_with_those_that_have_one():
    with pytest.raises(ValueError, match=r"got 'turn_on_the_stove' of libero_goal\."):
        LiberoEnv("goal", "turn_on_the_stove", cameras=()).make_expert()
    with pytest.raises(ValueError, match="expected noise >= 0, got -1"):
        LiberoEnv("object", 6, cameras=()).make_expert(noise=-1)


def test_every_script_belongs_to_a_task_of_the_package():
    provider = LiberoEnv("object", 0, cameras=()).provider
    names = {
        (task.suite, task.name)
        for suite in ("libero_object", "libero_spatial", "libero_goal")
        for task in provider.tasks(suite)
    }
    assert set(GRASPS) <= names
    assert sum(suite == "libero_object" for suite, _ in GRASPS) == 10
