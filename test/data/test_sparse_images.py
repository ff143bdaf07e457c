from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tensordict.nn import TensorDictModule

from torchrl_vla.data import DemonstrationDataset, aggregate, collect
from torchrl_vla.envs import GymnasiumEnv, RenderSpec, TabletopEnv
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import SchemaError


class Clock(gymnasium.Env):
    """A clock whose picture shows its time; it rings after ``goal`` steps."""

    observation_space = gymnasium.spaces.Dict(time=Box(-np.inf, np.inf, (1,)))
    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self, goal):
        self.goal, self.drawn = goal, 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return {"time": np.zeros(1)}, {}

    def step(self, action):
        self.time += 1
        rings = self.time >= self.goal
        return {"time": np.array([self.time])}, 0.0, rings, False, {"rings": rings}

    def draw(self):
        return np.full((8, 8, 3), self.time, np.uint8)


def make_clocks(*goals, on_demand=True):
    return GymnasiumEnv(
        [functools.partial(Clock, goal) for goal in goals],
        SimulatorInterface(
            lambda observation: {"state": observation["time"]},
            "rings",
            RenderSpec(Clock.draw, (8, 8, 3)),
        ),
        instructions="wait",
        options=SimulatorOptions(render_on_demand=on_demand),
    )


def expert():
    return TensorDictModule(torch.zeros_like, [("observation", "state")], ["action"])


def collect_clocks(folder, interval, *goals, episodes=2, **options):
    env = make_clocks(*goals, **options)
    return collect(
        env,
        expert(),
        episodes,
        folder=folder,
        image_interval=interval,
        progress=False,
    )


def shown(frames):
    return frames["observation", "image"][:, 0, 0, 0].tolist()


def test_every_third_frame_has_its_image_and_the_others_the_one_before(tmp_path):
    frames = collect_clocks(tmp_path, 3, 5, 7).frames
    first = frames[frames["episode_index"] == 0]
    assert first["frame_index"].tolist() == [0, 1, 2, 3, 4]
    assert shown(first) == [0, 0, 0, 3, 3]
    assert first["image_is_stale"].flatten().tolist() == [0, 1, 1, 0, 1]
    second = frames[frames["episode_index"] == 1]
    assert shown(second) == [0, 0, 0, 3, 3, 3, 6]
    assert first["observation", "state"].flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_count_begins_anew_with_each_episode(tmp_path):
    frames = collect_clocks(tmp_path, 3, 5, episodes=2).frames
    assert shown(frames) == [0, 0, 0, 3, 3] * 2


def test_only_frames_with_their_own_image_are_sampled_and_chunks_use_all(tmp_path):
    dataset = collect_clocks(tmp_path, 3, 5, 7)
    sample = dataset.replay_buffer(200, seed=0).sample()
    assert set(sample["frame_index"].tolist()) == {0, 3, 6}
    assert not sample["image_is_stale"].any()
    assert torch.equal(
        sample["observation", "image"][:, 0, 0, 0].long(), sample["frame_index"]
    )


def test_the_other_parts_are_those_of_a_dense_collection(tmp_path):
    sparse = collect_clocks(tmp_path / "a", 2, 5, 7).frames
    dense = collect_clocks(tmp_path / "b", 1, 5, 7, on_demand=False).frames
    fresh = ~sparse["image_is_stale"].flatten()
    assert fresh.sum() == 3 + 4
    same = dense[fresh] == sparse[fresh].exclude("image_is_stale")
    assert same.all()
    rest = ("action", "episode_index", "frame_index", ("next", "done"))
    assert (dense.select(*rest) == sparse.select(*rest)).all()
    assert (dense["observation", "state"] == sparse["observation", "state"]).all()


def test_the_interval_is_in_the_provenance(tmp_path):
    collect_clocks(tmp_path, 3, 5)
    read = DemonstrationDataset.from_folder(tmp_path)
    assert read.provenance["image_interval"] == 3


def test_an_aggregate_of_sparse_and_dense_samples_what_has_an_image(tmp_path):
    sparse = collect_clocks(tmp_path / "a", 4, 5, episodes=1)
    dense = collect_clocks(tmp_path / "b", 1, 5, episodes=1, on_demand=False)
    sample = aggregate(dense, sparse).replay_buffer(300, seed=0).sample()
    of_sparse = sample["episode_index"] == 1
    assert set(sample["frame_index"][of_sparse].tolist()) == {0, 4}
    assert set(sample["frame_index"][~of_sparse].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("options", [{"slice_len": 2}, {"history_size": 2}])
def test_what_reads_neighbouring_frames_refuses_stale_images(tmp_path, options):
    dataset = collect_clocks(tmp_path, 3, 5)
    with pytest.raises(SchemaError, match=r"replay_buffer: .*True in 6 of 10 frames"):
        dataset.replay_buffer(4, **options)


def test_an_interval_needs_an_environment_that_renders_on_demand(tmp_path):
    env = TabletopEnv(2, image_size=8)
    with pytest.raises(SettingsError, match=r"got TabletopEnv.*render_on_demand=True"):
        collect(env, env.make_expert(), 2, folder=tmp_path, image_interval=2)


def test_an_interval_is_at_least_one(tmp_path):
    with pytest.raises(SettingsError, match="image_interval >= 1, got 0"):
        collect_clocks(tmp_path, 0, 5)
