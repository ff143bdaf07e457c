from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, RewardSum, TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms import SuccessReward


def make_env(transform=None, batch=(2,)):
    """Make an environment of which the second step on the target succeeds."""
    env = ToyVLAEnv(2, 4, success_steps=2, max_steps=4, batch_size=batch, seed=0)
    return TransformedEnv(env, transform or SuccessReward())


def chase(td):
    """Give the target, which the state shows, as the action."""
    return td.set("action", td["observation", "state"][..., 2:].clone())


def test_the_reward_of_a_step_is_that_of_the_state_it_leads_to():
    rollout = make_env().rollout(4, chase)
    assert rollout["next", "success"][..., 0].tolist() == [[False, True]] * 2
    assert rollout["next", "reward"][..., 0].tolist() == [[0.0, 1.0]] * 2
    assert rollout["next", "done"][..., 0].tolist() == [[False, True]] * 2


def test_failure_is_never_rewarded():
    rollout = make_env().rollout(4, lambda td: td.set("action", torch.ones(2, 2)))
    assert rollout["next", "reward"][..., 0].tolist() == [[0.0] * 4] * 2


def test_a_reset_has_no_reward():
    assert "reward" not in make_env().reset()


def test_transforms_after_it_sum_its_reward():
    env = make_env(Compose(SuccessReward(scale=2.0), RewardSum()))
    rollout = env.rollout(4, chase)
    assert rollout["next", "episode_reward"][..., 0].tolist() == [[0.0, 2.0]] * 2


@pytest.mark.parametrize(("scale", "low", "high"), [(2.0, 0.0, 2.0), (-3.0, -3.0, 0.0)])
def test_the_reward_spec_is_between_nothing_and_the_scale(scale, low, high):
    env = make_env(SuccessReward(scale=scale))
    spec = env.reward_spec
    assert (spec.space.low.unique(), spec.space.high.unique()) == (low, high)
    assert (spec.shape, spec.dtype) == ((2, 1), torch.float32)
    check_env_specs(env)


def test_an_environment_without_a_batch_works():
    env = make_env(batch=())
    check_env_specs(env)
    assert env.rollout(4, chase)["next", "reward"][..., 0].tolist() == [0.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(-8, 8, width=16))
def test_the_reward_is_the_scale_where_and_only_where_success_is_true(success, scale):
    flags = torch.tensor(success).unsqueeze(-1)
    reward = SuccessReward(scale=scale)(TensorDict({"success": flags}, [len(success)]))
    assert reward["reward"].dtype == torch.float32
    assert reward["reward"][:, 0].tolist() == [scale if s else 0.0 for s in success]


def test_in_transitions_both_keys_are_those_under_next():
    data = TensorDict(
        {
            "success": torch.tensor([[True], [False]]),
            "next": {
                "success": torch.tensor([[False], [True]]),
                "reward": torch.tensor([[7.0], [7.0]]),
            },
        },
        [2],
    )
    data = SuccessReward()(data)
    assert data["next", "reward"].tolist() == [[0.0], [1.0]]
    assert "reward" not in data


def test_a_buffer_rewards_what_it_samples_and_stores_what_it_was_given():
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(2), transform=SuccessReward(), batch_size=2
    )
    given = TensorDict(
        {
            "next": {
                "success": torch.tensor([[True], [False]]),
                "reward": torch.ones(2, 1),
            }
        },
        [2],
    )
    buffer.extend(given)
    assert buffer.storage[:]["next", "reward"].tolist() == [[1.0], [1.0]]
    assert buffer[:]["next", "reward"].tolist() == [[1.0], [0.0]]


def test_every_key_can_be_another():
    transform = SuccessReward(("info", "solved"), ("info", "pay"), scale=5.0)
    data = TensorDict({"info": {"solved": torch.tensor([[True]])}}, [1])
    assert transform(data)["info", "pay"].tolist() == [[5.0]]


def test_data_without_the_flag_raise():
    message = (
        "SuccessReward: expected a success flag at 'success', got nothing. Available: "
        r"\['done'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        SuccessReward()(TensorDict({"done": torch.ones(1, 1)}, [1]))


def test_an_environment_without_the_flag_raises_and_names_what_it_has():
    env = TransformedEnv(ToyVLAEnv(), SuccessReward())
    message = (
        "expected 'success' in the environment's observations, got .*'episode_seed'.* "
        "Pass its key as success_key"
    )
    with pytest.raises(MissingKeyError, match=message):
        env.reward_spec  # noqa: B018


class Blinks(ToyVLAEnv):
    """The episode goes on after a success, which holds at every second step."""

    begins_solved = False

    def _ended(self):
        ended = super()._ended()
        never = torch.zeros_like(ended["done"])
        return {**ended, "terminated": never, "done": ended["truncated"]}

    def _success(self):
        step = self._episode["step"].unsqueeze(-1)
        return step % 2 == (0 if self.begins_solved else 1)


class BeginsSolved(Blinks):
    begins_solved = True


@pytest.mark.parametrize("env_class", [Blinks, BeginsSolved])
def test_an_episode_that_goes_on_after_its_success_is_paid_once(env_class):
    env = TransformedEnv(
        env_class(2, 4, success_steps=1, max_steps=5, batch_size=[2]), SuccessReward()
    )
    check_env_specs(env)
    rollout = env.rollout(
        15, lambda td: td.set("action", torch.ones(2, 2)), break_when_any_done=False
    )
    reward = rollout["next", "reward"][..., 0]
    assert reward.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0] * 3] * 2
    assert rollout["next", "success"].sum() >= 12


def test_a_row_that_sits_a_step_out_is_not_paid_for_it():
    env = TransformedEnv(
        Blinks(2, 4, success_steps=1, max_steps=5, batch_size=[2]), SuccessReward()
    )
    td = env.reset().set("action", torch.ones(2, 2))
    td["_step"] = torch.tensor([True, False])
    after = env.step(td)["next"]
    assert after["reward"].tolist() == [[1.0], [0.0]]
    assert after["success_so_far"].tolist() == [[True], [False]]


def test_one_environment_that_begins_anew_is_paid_again_alone():
    env = TransformedEnv(
        Blinks(2, 4, success_steps=1, max_steps=9, batch_size=[2]), SuccessReward()
    )
    td = env.step(env.reset().set("action", torch.ones(2, 2)))["next"]
    td["_reset"] = torch.tensor([[True], [False]])
    td = env.reset(td).set("action", torch.ones(2, 2))
    assert td["success_so_far"].tolist() == [[False], [True]]
    assert env.step(td)["next", "reward"].tolist() == [[1.0], [0.0]]


def test_a_step_that_does_not_say_what_was_paid_raises():
    env = make_env()
    td = env.reset().exclude("success_so_far").set("action", torch.ones(2, 2))
    with pytest.raises(MissingKeyError, match="at 'success_so_far' of a step"):
        env.step(td)


def test_a_share_of_a_task_is_no_success():
    data = TensorDict({"success": torch.tensor([[0.02]])}, [1])
    with pytest.raises(SchemaError, match="A share of a task is no success"):
        SuccessReward()(data)
