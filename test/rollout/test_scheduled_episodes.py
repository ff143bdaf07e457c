from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.envs import GymEnv

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.rollout import ScheduledEpisodes, episode_seeds
from torchrl_vla.schema import ExecutionError
from torchrl_vla.testing import check_env


def make(num_envs=6, **options) -> ScheduledEpisodes:
    return ScheduledEpisodes(TabletopEnv(num_envs, image_size=8), **options)


def reset_some(env, data, indices):
    mask = torch.zeros(len(data), 1, dtype=torch.bool)
    mask[indices] = True
    return env.reset(data.set("_reset", mask))


def test_environments_of_a_group_begin_alike_and_groups_do_not():
    seeds = make(group_size=3).reset()["episode_seed"]
    assert seeds[:3].unique().numel() == seeds[3:].unique().numel() == 1
    assert seeds[0] != seeds[3]


@given(order=st.permutations([0, 0, 1, 1, 2, 2]))
@settings(max_examples=10, deadline=None)
def test_the_nth_episode_of_an_environment_does_not_depend_on_the_others(order):
    env = make(3)
    seen = [[seed] for seed in env.reset()["episode_seed"].tolist()]
    data = env.reset()
    env.begin(0)
    data = env.reset()
    for index in order:
        data = reset_some(env, data, [index])
        seen[index].append(data["episode_seed"][index].item())
    env.begin(0)
    together = [env.reset()["episode_seed"] for _ in range(3)]
    assert seen == torch.stack(together, 1).tolist()


def test_an_iteration_begins_the_same_episodes_again():
    env = make()
    env.begin(5)
    first = env.reset()
    env.begin(6)
    other = env.reset()
    env.begin(5)
    again = env.reset()
    assert torch.equal(first["observation", "image"], again["observation", "image"])
    assert not torch.equal(first["episode_seed"], other["episode_seed"])


def test_another_seed_gives_other_episodes():
    one, two = (make(64, seed=seed).reset()["episode_seed"] for seed in (0, 1))
    assert not set(one.tolist()) & set(two.tolist())


def test_the_seeds_have_the_purpose_of_training():
    env = make(512)
    drawn = torch.cat([env.reset()["episode_seed"] for _ in range(20)])
    assert drawn.min() >= 2**30
    assert drawn.max() < 2**31
    assert drawn.unique().numel() > 0.999 * drawn.numel()


def test_seeds_of_the_purpose_training_are_those_of_the_first_iteration():
    env = make(seed=3, group_size=2)
    env.begin(1)
    seeds = env.reset()["episode_seed"]
    assert seeds[::2].tolist() == episode_seeds(3, 3, "training")


def test_the_schedule_is_the_one_of_the_first_trainings():
    # Recorded before the seeds moved here: weights of trainings depend on them.
    env = make(2, seed=5)
    env.begin(3)
    assert env.reset()["episode_seed"].tolist() == [1900308966, 2058236628]


def test_seeds_that_are_given_are_taken():
    seeds = torch.arange(6)
    assert torch.equal(make().reset(episode_seeds=seeds)["episode_seed"], seeds)


def test_it_is_an_environment():
    check_env(make())


def test_a_number_that_no_group_size_divides_are_refused():
    with pytest.raises(ValueError, match=r"a multiple of group_size=4, got \[6\]"):
        make(group_size=4)


def test_an_environment_without_episode_seeds_is_refused():
    with pytest.raises(ExecutionError, match=r"expected an environment with 'episode_"):
        ScheduledEpisodes(GymEnv("Pendulum-v1"))
