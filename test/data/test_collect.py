from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Text
from point_robot import Diverges, Point, act_by, make_point, towards
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.envs import PendulumEnv

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import GymnasiumEnv, TabletopEnv, ToyVLAEnv
from torchrl_vla.envs.simulator_interface import SimulatorInterface
from torchrl_vla.errors import ArgumentTypeError
from torchrl_vla.rollout import episode_seeds
from torchrl_vla.schema import (
    ExecutionError,
    MissingKeyError,
    SchemaError,
    validate_vla_tensordict,
)


def make_env(num_envs=4, **options):
    return TabletopEnv(num_envs, image_size=8, seed=0, **options)


def collect_from(env, expert, episodes, folder, **options):
    return collect(env, expert, episodes, folder=folder, progress=False, **options)


class OddFails(TensorDictModuleBase):
    """The expert, which stands still in episodes whose seed is odd."""

    def __init__(self, expert):
        super().__init__()
        self.expert = expert
        self.in_keys = ["episode_seed", *expert.in_keys]
        self.out_keys = ["action"]

    def forward(self, tensordict):
        action = self.expert(tensordict.copy())["action"]
        odd = (tensordict["episode_seed"] % 2 == 1).unsqueeze(-1)
        away = torch.ones_like(action)  # long steps never come down on a block
        return tensordict.set("action", torch.where(odd, away, action))


def test_frames_are_the_steps_of_the_episodes_in_order(tmp_path):
    env = make_env()
    dataset = collect_from(env, env.make_expert(), 5, tmp_path)
    frames = dataset.frames
    for index, seed in enumerate(episode_seeds(0, 5, "demonstrations")):
        episode = frames[frames["episode_index"] == index]
        assert episode["frame_index"].tolist() == list(range(len(episode)))
        assert (episode["episode_seed"] == seed).all()
        assert episode["next", "done"].flatten().tolist()[:-1] == [False] * (
            len(episode) - 1
        )
        assert episode["next", "done"][-1]
        assert episode["next", "success"][-1]
        # The gripper moves by what was done: a tenth of the action.
        state, action = episode["observation", "state"], episode["action"]
        moved = (state[:-1] + 0.1 * action[:-1]).clamp(-1, 1)
        assert torch.allclose(moved, state[1:], atol=1e-6)


def test_the_dataset_does_not_depend_on_how_many_run_side_by_side(tmp_path):
    datasets = []
    for num_envs in (1, 3, 8):
        env = make_env(num_envs)
        folder = tmp_path / str(num_envs)
        datasets.append(collect_from(env, env.make_expert(), 5, folder))
    for other in datasets[1:]:
        assert (other.frames == datasets[0].frames).all()
        assert other.metadata == datasets[0].metadata


@pytest.mark.parametrize("num_envs", [1, 3])
def test_failures_are_dropped_and_made_up_for(tmp_path, num_envs):
    env = make_env(num_envs)
    dataset = collect_from(env, OddFails(env.make_expert()), 3, tmp_path)
    seeds = dataset.frames["episode_seed"]
    kept = [int(seeds[dataset.frames["episode_index"] == i][0]) for i in range(3)]
    assert kept == [0, 2, 4]
    assert dataset.num_episodes == 3


def test_failures_are_kept_when_asked_for(tmp_path):
    env = make_env()
    expert = OddFails(env.make_expert())
    dataset = collect_from(env, expert, 4, tmp_path, successes_only=False)
    frames = dataset.frames
    last = frames[frames["next", "done"].squeeze(-1)]
    assert last["next", "success"].flatten().tolist() == [True, False, True, False]


def test_an_expert_that_fails_too_often_is_given_up(tmp_path):
    env = make_env()
    still = TensorDictModule(
        lambda state: torch.ones_like(state), [("observation", "state")], ["action"]
    )
    with pytest.raises(
        ExecutionError, match="expected 2 successful episodes, got 0 in 5"
    ):
        collect_from(env, still, 2, tmp_path / "d", max_attempts=5)
    assert not (tmp_path / "d").exists()


def test_the_intended_action_is_stored_and_the_noisy_one_executed(tmp_path):
    env = make_env(1)
    expert = env.make_expert(noise=0.5, seed=0)
    said = []

    def listen(module, inputs, output):
        said.append((output["action"].clone(), output["expert_action"].clone()))

    expert.register_forward_hook(listen)
    frames = collect_from(env, expert, 1, tmp_path, successes_only=False).frames
    assert torch.equal(frames["action"], torch.cat([intended for _, intended in said]))
    executed = torch.cat([action for action, _ in said])
    assert not torch.equal(frames["action"], executed)
    state = frames["observation", "state"]
    moved = (state[:-1] + 0.1 * executed[:-1]).clamp(-1, 1)
    assert torch.allclose(moved, state[1:], atol=1e-6)


def test_balanced_gives_as_many_episodes_of_each_instruction(tmp_path):
    env = make_env(4)
    dataset = collect_from(env, env.make_expert(), 12, tmp_path, balanced=True)
    first = dataset.frames[dataset.frames["frame_index"] == 0]
    ids, counts = first["language_instruction"].unique(return_counts=True)
    assert set(ids.tolist()) == set(env.instructions.ids.tolist())
    assert counts.tolist() == [2] * 6


class Turns(gymnasium.Env):
    """Two tasks that take turns from seed to seed; seeds 0 and 2 cannot be solved."""

    observation_space = Dict(at=Box(-1.0, 1.0, (1,)), task=Text(9))
    action_space = Box(-1.0, 1.0, (1,))
    ran: ClassVar[list[int]] = []

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        self.ran.append(seed)
        return {"at": np.zeros(1), "task": ("push", "pull")[seed % 2]}, {}

    def step(self, action):
        at = {"at": np.zeros(1), "task": ""}
        return at, 0.0, True, False, {"solved": self.seed not in (0, 2)}


def test_balanced_tries_again_only_what_is_missing_where_tasks_take_turns(tmp_path):
    Turns.ran.clear()
    env = GymnasiumEnv(
        Turns,
        SimulatorInterface(
            lambda seen: {"state": seen["at"], "instruction": seen["task"]}, "solved"
        ),
        instructions=["push", "pull"],
    )
    env.tasks_take_turns = True
    still = TensorDictModule(torch.zeros_like, [("observation", "state")], ["action"])
    dataset = collect_from(env, still, 8, tmp_path, balanced=True)
    # 4 and 6 are solved, 0 and 2 are not: the next of this task are 8 and 10.
    assert Turns.ran == [*range(8), 8, 10]
    assert sorted(set(dataset.frames["episode_seed"].tolist())) == [
        *(1, 3, 4, 5, 6, 7),
        *(8, 10),
    ]
    assert dataset.provenance["attempts"] == 10


def test_balanced_needs_a_multiple_of_the_instructions(tmp_path):
    env = make_env()
    with pytest.raises(ValueError, match=r"a multiple of the 6 instructions .* got 7"):
        collect_from(env, env.make_expert(), 7, tmp_path, balanced=True)


def test_statistics_are_those_of_the_stored_frames(tmp_path):
    env = make_env()
    dataset = collect_from(env, env.make_expert(), 4, tmp_path)
    for statistics, key in (
        (dataset.metadata.action_statistics, "action"),
        (dataset.metadata.state_statistics, ("observation", "state")),
    ):
        values = dataset.frames[key].double()
        assert statistics.count == len(values)
        assert torch.allclose(statistics.mean, values.mean(0))
        assert torch.allclose(statistics.std, values.std(0, correction=0))
        assert torch.equal(statistics.min, values.min(0).values)
        assert torch.equal(statistics.max, values.max(0).values)


def test_the_metadata_is_the_environments_with_statistics(tmp_path):
    env = make_env()
    dataset = collect_from(env, env.make_expert(), 2, tmp_path)
    dataset.metadata.check_compatible(env.metadata)
    assert dataset.metadata.dataset_id == env.metadata.dataset_id


def test_what_is_stored_is_valid_and_nothing_else(tmp_path):
    env = make_env()
    dataset = collect_from(env, env.make_expert(noise=0.1), 2, tmp_path)
    assert validate_vla_tensordict(dataset.frames.to_tensordict()) == []
    assert set(dataset.frames.keys(True, True)) == {
        ("observation", "image"),
        ("observation", "state"),
        "language_instruction",
        "action",
        "episode_index",
        "frame_index",
        "episode_seed",
        ("next", "reward"),
        ("next", "done"),
        ("next", "terminated"),
        ("next", "truncated"),
        ("next", "success"),
    }


def test_a_folder_in_use_is_kept_unless_overwriting_is_asked_for(tmp_path):
    env = make_env()
    collect_from(env, env.make_expert(), 2, tmp_path)
    with pytest.raises(FileExistsError, match="expected no dataset at"):
        collect_from(env, env.make_expert(), 1, tmp_path)
    assert DemonstrationDataset.from_folder(tmp_path).num_episodes == 2
    collect_from(env, env.make_expert(), 1, tmp_path, overwrite=True)
    assert DemonstrationDataset.from_folder(tmp_path).num_episodes == 1


def chase():
    return TensorDictModule(
        lambda state: state[..., 2:], [("observation", "state")], ["action"]
    )


@pytest.mark.parametrize("batch_size", [[], [3]])
def test_text_is_stored_as_ids_of_the_instructions(tmp_path, batch_size):
    class Follow(ToyVLAEnv):
        instruction = "follow"

    env = Follow(2, 4, success_steps=2, batch_size=batch_size)
    dataset = collect_from(env, chase(), 2, tmp_path)
    ids = dataset.frames["language_instruction"]
    assert dataset.instructions.decode(ids) == ["follow"] * len(dataset)
    assert "follow" in repr(dataset)


def test_an_environment_that_tells_no_success_is_refused(tmp_path):
    env = ToyVLAEnv(2, 4, max_steps=3, batch_size=[2])
    with pytest.raises(MissingKeyError, match=r"none of \[\('next', 'success'\)\]"):
        collect_from(env, chase(), 2, tmp_path)


def test_no_episodes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected episodes >= 1, got 0"):
        collect_from(make_env(), None, 0, tmp_path)


def test_the_progress_bar_counts_what_is_kept(tmp_path, capsys):
    env = make_env()
    collect(env, OddFails(env.make_expert()), 3, folder=tmp_path)
    assert "3/3" in capsys.readouterr().err.split("\r")[-1]


def test_an_image_that_was_not_drawn_is_not_recorded(tmp_path):
    class NobodyLooks(TensorDictModuleBase):
        def __init__(self, expert):
            super().__init__()
            self.expert, self.in_keys = expert, expert.in_keys
            self.out_keys = ["action", "observation_needed"]

        def forward(self, tensordict):
            flag = torch.zeros(*tensordict.batch_size, 1, dtype=torch.bool)
            return self.expert(tensordict).set("observation_needed", flag)

    env = make_env(tasks=("push",), render_on_demand=True)
    expert = env.make_expert()
    message = r"^collect: expected images of their own step.*render_on_demand=False"
    with pytest.raises(SchemaError, match=message):
        collect_from(env, NobodyLooks(expert), 2, tmp_path / "stale")
    dataset = collect_from(env, expert, 2, tmp_path / "fresh")  # looks at every step
    assert "image_is_stale" not in dataset.frames


def greedy(limit):
    return act_by(lambda state: towards(state, limit))


def test_targets_beyond_the_bounds_are_those_that_were_executed(tmp_path):
    bold = collect_from(make_point(), greedy(1e9), 8, tmp_path / "bold")
    modest = collect_from(make_point(), greedy(1.0), 8, tmp_path / "modest")
    assert torch.equal(bold.frames["action"], modest.frames["action"])
    assert bold.metadata == modest.metadata
    assert bold.provenance["labels"]["beyond_bounds"] == "clamp"
    assert 0 < bold.provenance["labels"]["frames"] <= len(bold)
    assert "labels" not in modest.provenance


def test_targets_beyond_the_bounds_can_be_refused(tmp_path):
    with pytest.raises(SchemaError, match=r"or pass labels='clamp' \(--labels clamp\)"):
        collect_from(make_point(), greedy(1e9), 8, tmp_path, labels="refuse")
    with pytest.raises(ValueError, match=r"labels to be one of .* got 'keep'"):
        collect_from(make_point(), greedy(1.0), 8, tmp_path, labels="keep")


def test_a_rollout_of_a_bold_policy_is_clamped_too():
    env = make_point()
    rollout = env.rollout(5, greedy(1e9))
    dataset = DemonstrationDataset.from_rollout(rollout, env.metadata, env.instructions)
    assert dataset.frames["action"].abs().max() == 1.0
    assert dataset.provenance["labels"]["frames"] > 0


def test_bfloat16_actions_are_stored_in_float32(tmp_path):
    expert = act_by(lambda state: towards(state).bfloat16())
    dataset = collect_from(make_point(), expert, 2, tmp_path)
    assert dataset.frames["action"].dtype == torch.float32


def test_an_attempt_that_ends_in_an_error_is_replaced_and_recorded(tmp_path):
    dataset = collect_from(make_point(Diverges), greedy(1.0), 40, tmp_path)
    assert dataset.num_episodes == 40
    failed = dataset.provenance["failed"]
    assert dataset.provenance["attempts"] == 40 + len(failed)
    assert all("The simulation diverged" in entry["error"] for entry in failed)
    seeds = set(dataset.frames["episode_seed"].unique().tolist())
    bad = {entry["seed"] for entry in failed}
    assert len(bad) == len(failed) > 0
    assert not seeds & bad
    reread = DemonstrationDataset.from_folder(tmp_path)
    assert reread.provenance["failed"] == failed


def test_what_was_kept_before_an_error_is_written_beside_the_folder(tmp_path):
    class ForgetsSuccess(Point):
        def info(self, distance):
            return {"success": None if self.goal[0] > 0.9 else distance < 0.1}

    folder = tmp_path / "demos"
    env = make_point(ForgetsSuccess, 2)
    with pytest.raises(
        ExecutionError, match=r"expected 60 episodes, got \d+ before an e"
    ):
        collect_from(env, greedy(1.0), 60, folder)
    assert not folder.exists()
    partial = DemonstrationDataset.from_folder(tmp_path / "demos.partial")
    assert 0 < partial.num_episodes < 60
    assert partial.frames["episode_index"].unique().tolist() == list(
        range(partial.num_episodes)
    )


def test_ctrl_c_keeps_what_is_finished_and_stays_ctrl_c(tmp_path):
    class Interrupted(Point):
        def info(self, distance):
            if self.goal[0] > 0.9:
                raise KeyboardInterrupt
            return super().info(distance)

    folder = tmp_path / "demos"
    with pytest.raises(KeyboardInterrupt, match=r"got \d+ before .*demos\.partial"):
        collect_from(make_point(Interrupted, 2), greedy(1.0), 60, folder)
    assert not folder.exists()
    partial = DemonstrationDataset.from_folder(tmp_path / "demos.partial")
    assert 0 < partial.num_episodes < 60


def test_what_cannot_act_or_be_acted_in_is_refused(tmp_path):
    env = make_env()
    with pytest.raises(ArgumentTypeError, match=r"^collect: .*'policy', got function"):
        collect_from(env, lambda td: td, 2, tmp_path)
    with pytest.raises(ArgumentTypeError, match=r"^collect: .*'env', got .*Point"):
        collect_from(Point(), env.make_expert(), 2, tmp_path)
    with pytest.raises(MissingKeyError, match=r"PendulumEnv to have .*'instructions'"):
        collect_from(PendulumEnv(), env.make_expert(), 2, tmp_path)


def test_collect_judges_in_evaluation_mode_and_restores_the_mode(tmp_path):
    modes = []
    expert = greedy(1.0).train()
    expert.register_forward_hook(lambda m, *_: modes.append(m.training))
    collect_from(make_point(), expert, 2, tmp_path)
    assert set(modes) == {False}
    assert expert.training
