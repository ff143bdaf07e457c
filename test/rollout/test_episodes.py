from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.envs import ExcludeTransform, StepCounter, TransformedEnv

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.rollout import episode_seeds, noise_seeds, run_episodes
from torchrl_vla.schema import ExecutionError, MissingKeyError


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 9))
def test_every_seed_is_one_episode_whatever_the_number_of_environments(num_envs, count):
    env = TabletopEnv(num_envs, image_size=8, max_steps=6)
    seeds = episode_seeds(5, count, "evaluation")
    finished, frames = [], {}
    for step in run_episodes(env, env.make_expert(), seeds):
        for env_index, index in enumerate(step.episode.tolist()):
            if index < 0:
                continue
            assert step.data["episode_seed"][env_index] == seeds[index]
            frames.setdefault(index, []).append(int(step.frame[env_index]))
            if step.done[env_index]:
                finished.append(index)
    assert sorted(finished) == list(range(count))
    assert all(seen == list(range(len(seen))) for seen in frames.values())


def test_is_init_marks_first_steps_only():
    env = TabletopEnv(3, image_size=8, max_steps=6)
    for step in run_episodes(env, env.make_expert(), episode_seeds(0, 7, "evaluation")):
        running = step.episode >= 0
        is_init = step.data["is_init"].squeeze(-1)
        assert torch.equal(is_init[running], (step.frame == 0)[running])


def test_environments_keep_running_while_others_begin_episodes():
    # The observations are those of the episode run alone.
    env = TabletopEnv(3, image_size=8)
    alone = {}
    for index, seed in enumerate(episode_seeds(0, 5, "evaluation")):
        single = TabletopEnv(1, image_size=8)
        steps = run_episodes(single, single.make_expert(), [seed])
        alone[index] = [step.data["observation", "state"][0] for step in steps]
    for step in run_episodes(env, env.make_expert(), episode_seeds(0, 5, "evaluation")):
        for env_index, index in enumerate(step.episode.tolist()):
            if index >= 0:
                state = step.data["observation", "state"][env_index]
                assert torch.equal(state, alone[index][int(step.frame[env_index])])


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


class Parts(TensorDictModuleBase):
    """A policy that notes the modes of its parts at each call."""

    def __init__(self):
        super().__init__()
        self.in_keys, self.out_keys = [("observation", "state")], ["action"]
        self.frozen = torch.nn.BatchNorm1d(2).eval()
        self.trained = torch.nn.BatchNorm1d(2).train()
        self.seen = set()

    def forward(self, tensordict):
        self.seen.add((self.training, self.frozen.training, self.trained.training))
        return tensordict.set("action", self.trained(torch.zeros(1, 2)))


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_policy_is_in_evaluation_mode_and_each_part_back_in_its_own_after(
    is_trained,
):
    policy = Parts()
    policy.training = is_trained  # of the module alone: a mixture of modes
    env = TabletopEnv(1, image_size=8, max_steps=4)
    list(run_episodes(env, policy, [0, 1]))
    assert policy.seen == {(False, False, False)}
    assert policy.training == is_trained
    assert (policy.frozen.training, policy.trained.training) == (False, True)
    assert policy.trained.num_batches_tracked == 0


def test_the_modes_are_restored_where_an_episode_ends_in_an_error():
    policy = Parts()
    env = TabletopEnv(1, image_size=8, max_steps=4)
    with pytest.raises(ExecutionError, match="at most max_steps=2, got a longer one"):
        list(run_episodes(env, policy, [0], max_steps=2))
    assert policy.trained.training


def seen_noise_seeds(num_envs, seeds):
    """Return the noise seed of every (episode, frame) as the policy is called."""
    env = TabletopEnv(num_envs, image_size=8, max_steps=5)
    expert, seen, given = env.make_expert(), [], {}
    expert.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]["noise_seed"].clone())
    )
    for step in run_episodes(env, expert, seeds):
        for env_index, index in enumerate(step.episode.tolist()):
            if index >= 0:
                at = seeds[index], int(step.frame[env_index])
                given[at] = int(seen[-1][env_index])
    return given


def test_a_noise_seed_is_a_function_of_the_episode_seed_and_the_step():
    alone = seen_noise_seeds(1, [4, 9, 2])
    assert seen_noise_seeds(3, [2, 4, 9]) == seen_noise_seeds(2, [9, 2, 4]) == alone
    assert len(set(alone.values())) == len(alone)
    for (seed, frame), noise_seed in alone.items():
        expected = noise_seeds(torch.tensor(seed), torch.tensor(frame))
        assert expected == noise_seed


def test_an_unbatched_environment_gets_one_noise_seed():
    env = TransformedEnv(ToyVLAEnv(action_dim=2, state_dim=2), StepCounter(2))
    step = next(iter(run_episodes(env, act_at("action", (2,)), [3])))
    assert step.data["noise_seed"].shape == ()


class Fragile(TabletopEnv):
    """Raises at the second step of some seeds; may say in which environments."""

    def __init__(self, num_envs, bad, *, says_where=True):
        super().__init__(num_envs, image_size=8, max_steps=5)
        self.bad, self.says_where = torch.tensor(bad), says_where

    def _step(self, tensordict):
        out = super()._step(tensordict)
        fails = torch.isin(self._seeds, self.bad) & (self._steps == 2)
        if fails.any():
            error = ExecutionError("the gripper broke")
            raise error.at_envs(fails) if self.says_where else OSError("it broke")
        return out


def away():
    """A policy that neither succeeds nor fails: episodes take five steps."""
    return TensorDictModule(
        lambda state: torch.ones_like(state), [("observation", "state")], ["action"]
    )


@pytest.mark.parametrize("says_where", [True, False])
@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_an_episode_that_fails_costs_no_other(num_envs, says_where):
    env = Fragile(num_envs, [2, 3, 9], says_where=says_where)
    failures, finished, frames = [], [], {}
    for step in run_episodes(env, away(), list(range(12)), failures=failures):
        for env_index, index in enumerate(step.episode.tolist()):
            if index < 0:
                continue
            frame = int(step.frame[env_index])
            frames[index] = [frame] if frame == 0 else [*frames[index], frame]
            finished += [index] if step.done[env_index] else []
    assert sorted(failure.index for failure in failures) == [2, 3, 9]
    assert [failure.seed for failure in failures] == [f.index for f in failures]
    assert sorted(finished) == [0, 1, 4, 5, 6, 7, 8, 10, 11]
    assert all(frames[index] == [0, 1, 2, 3, 4] for index in finished)
    assert "broke" in str(failures[0])


def test_the_first_episode_may_fail_while_the_last_ones_run():
    # Environments without an episode repeat a running one, not the one that fails.
    failures = []
    env = Fragile(8, [0])
    list(run_episodes(env, away(), [0, 1, 2], failures=failures))
    assert [failure.index for failure in failures] == [0]


def test_without_a_list_an_error_is_raised():
    with pytest.raises(ExecutionError, match="the gripper broke"):
        list(run_episodes(Fragile(2, [1]), away(), [0, 1, 2]))


def test_an_error_of_every_episode_is_raised_after_a_few():
    failures = []
    env = Fragile(2, list(range(99)))
    with pytest.raises(ExecutionError, match="the gripper broke"):
        list(run_episodes(env, away(), list(range(99)), failures=failures))
    assert len(failures) == 8


def test_an_error_of_the_policy_before_the_first_step_is_raised():
    def fail(state):
        raise KeyError("no such weight")

    policy = TensorDictModule(fail, [("observation", "state")], ["action"])
    failures = []
    with pytest.raises(KeyError, match="no such weight"):
        list(run_episodes(TabletopEnv(2, image_size=8), policy, [0], failures=failures))
    assert failures == []


def test_a_policy_on_another_device_is_named():
    policy = TensorDictModule(
        torch.nn.Linear(2, 2, device="meta"), [("observation", "state")], ["action"]
    )
    with pytest.raises(
        SettingsError, match=r"the policy on 'cpu', .* got one on 'meta'"
    ):
        list(run_episodes(TabletopEnv(2, image_size=8), policy, [0]))


class Counts(torch.nn.Module):
    """Changes a stored buffer even in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, state):
        self.calls += 1
        self.cache += 1
        return torch.zeros(*state.shape[:-1], 2)


def test_a_buffer_that_evaluation_changes_gets_its_value_back():
    module = Counts()
    policy = TensorDictModule(module, [("observation", "state")], ["action"])
    env = TabletopEnv(1, image_size=8, max_steps=3)
    with pytest.warns(UserWarning, match=r"got changes of \['module\.calls'\]"):
        list(run_episodes(env, policy, [0]))
    assert module.calls.item() == 0
    assert module.cache.item() == 3


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_ends_its_episode_only(reward):
    class Diverges(TabletopEnv):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            out["reward"][self._seeds == 1] = reward
            return out

    failures = []
    env = Diverges(3, image_size=8, max_steps=3)
    list(run_episodes(env, away(), [0, 1, 2], failures=failures))
    assert [failure.seed for failure in failures] == [1]
    assert "expected finite rewards" in str(failures[0])
