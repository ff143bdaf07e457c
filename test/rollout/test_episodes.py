from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import TensorDictModule
from torchrl.envs import ExcludeTransform, StepCounter, TransformedEnv

from torchrl_vla.rollout import episode_seeds, run_episodes
from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.schema import ExecutionError, MissingKeyError


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 50))
def test_two_runs_never_share_a_seed(one, other, count):
    seeds, others = set(episode_seeds(one, count)), set(episode_seeds(other, count))
    assert len(seeds) == count
    assert one == other or seeds.isdisjoint(others)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_later_episodes_of_a_run_continue_its_seeds():
    assert episode_seeds(3, 5)[2:] == episode_seeds(3, 3, first=2)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 9))
def test_every_seed_is_one_episode_whatever_the_number_of_rows(num_envs, count):
    env = TabletopEnv(num_envs, image_size=8, max_steps=6)
    seeds = episode_seeds(5, count)
    finished, frames = [], {}
    for step in run_episodes(env, env.make_expert(), seeds):
        for row, index in enumerate(step.episode.tolist()):
            if index < 0:
                continue
            assert step.data["episode_seed"][row] == seeds[index]
            frames.setdefault(index, []).append(int(step.frame[row]))
            if step.done[row]:
                finished.append(index)
    assert sorted(finished) == list(range(count))
    assert all(seen == list(range(len(seen))) for seen in frames.values())


def test_is_init_marks_first_steps_only():
    env = TabletopEnv(3, image_size=8, max_steps=6)
    for step in run_episodes(env, env.make_expert(), episode_seeds(0, 7)):
        running = step.episode >= 0
        is_init = step.data["is_init"].squeeze(-1)
        assert torch.equal(is_init[running], (step.frame == 0)[running])


def test_rows_keep_running_while_others_start_anew():
    # Row by row the observations are those of the episode alone.
    env = TabletopEnv(3, image_size=8)
    alone = {}
    for index, seed in enumerate(episode_seeds(0, 5)):
        single = TabletopEnv(1, image_size=8)
        steps = run_episodes(single, single.make_expert(), [seed])
        alone[index] = [step.data["observation", "state"][0] for step in steps]
    for step in run_episodes(env, env.make_expert(), episode_seeds(0, 5)):
        for row, index in enumerate(step.episode.tolist()):
            if index >= 0:
                state = step.data["observation", "state"][row]
                assert torch.equal(state, alone[index][int(step.frame[row])])


def act_at(key, shape):
    return TensorDictModule(
        lambda state: torch.zeros(*state.shape[:-1], *shape),
        [("observation", "state")],
        [key],
    )


def test_a_chunk_policy_is_sent_to_its_executor():
    env = TabletopEnv(2, image_size=8)
    with pytest.raises(MissingKeyError, match="wrap it in MultiStepActorWrapper, or "):
        next(iter(run_episodes(env, act_at("action_chunk", (4, 2)), [0, 1])))


def test_a_policy_without_an_action_is_refused():
    env = TabletopEnv(2, image_size=8)
    with pytest.raises(MissingKeyError, match=r"got \['actoin'\]\. Check its out_keys"):
        next(iter(run_episodes(env, act_at("actoin", (2,)), [0, 1])))


def test_a_batched_environment_without_seeds_is_refused():
    env = ToyVLAEnv(action_dim=2, state_dim=2, batch_size=[2])
    env = TransformedEnv(env, ExcludeTransform("episode_seed"))
    with pytest.raises(
        ExecutionError, match=r"expected a batched environment to write"
    ):
        next(iter(run_episodes(env, act_at("action", (2,)), [0, 1])))


def test_an_episode_without_end_is_stopped_when_a_limit_is_given():
    env = ToyVLAEnv(action_dim=2, state_dim=2)
    steps = run_episodes(env, act_at("action", (2,)), [0], max_steps=3)
    with pytest.raises(ExecutionError, match=r"Give the environment a time limit"):
        list(steps)
    limited = TransformedEnv(env, StepCounter(3))
    assert (
        len(list(run_episodes(limited, act_at("action", (2,)), [0], max_steps=3))) == 3
    )
