from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from robot_space_fakes import S, make_mover, make_state_critic
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.policies import (
    BackboneConfig,
    LeRobotPolicyWrapper,
    TinyCritic,
    TinyGaussianVLA,
)
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    SettingsError,
    finetune,
    load_checkpoint,
    load_executor,
)
from torchrl_vla.recipes.finetuning.policies import (
    choose_critic,
    make_executor,
    save_finetuned,
)
from torchrl_vla.schema import FeatureStatistics
from torchrl_vla.spaces import ModelSpace

SMALL = FinetuneSettings(iterations=1, eval_episodes=2)


def make_env():
    return TabletopEnv(2, image_size=16, num_blocks=2, max_steps=4, seed=0)


def make_tiny():
    return TinyGaussianVLA(
        action_dim=2,
        chunk_size=4,
        backbone=BackboneConfig(state_dim=S, hidden=8, depth=1),
    )


def make_space():
    statistics = FeatureStatistics.from_samples(torch.tensor([[0.0, 0.0], [4.0, 2.0]]))
    return ModelSpace(replace(make_env().metadata, action_statistics=statistics))


def frozen():
    return make_mover().requires_grad_(False)


def parasite(policy):
    return TensorDictModule(
        nn.Sequential(policy.eyes, policy.out, nn.Linear(8, 1)),
        in_keys=[("observation", "state")],
        out_keys=["state_value"],
    )


@pytest.mark.parametrize(
    ("make_policy", "message"),
    [
        (make_tiny, r"expected the ModelSpace that TinyGaussianVLA was trained in, g"),
        (frozen, r"expected a Mover with weights to train, got one whose requires_g"),
    ],
)
def test_a_policy_that_could_not_learn_is_refused(make_policy, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        finetune(make_policy(), None, make_env(), tmp_path / "run", SMALL)


def test_a_policy_of_lerobots_without_log_probabilities_is_refused(tmp_path):
    policy = LeRobotPolicyWrapper(lambda batch: batch, action_dim=2, chunk_size=4)
    with pytest.raises(TypeError, match=r"log-probabilities of its samples, got Le"):
        finetune(policy, None, make_env(), tmp_path / "run", SMALL)
    assert not (tmp_path / "run").exists()


def test_a_critic_that_nobody_needs_is_refused(tmp_path):
    settings = replace(SMALL, algorithm=GRPO(group_size=2))
    critic = make_state_critic()
    with pytest.raises(
        SettingsError,
        match=r"expected no critic with GRPO, which trains none, got a TensorDictMod",
    ):
        finetune(make_mover(), None, make_env(), tmp_path, settings, critic=critic)


def test_a_critic_that_writes_something_else_is_refused():
    critic = TinyCritic(make_tiny().backbone, value_key="worth")
    with pytest.raises(
        SettingsError, match=r"writes 'state_value', got TinyCritic with .* \['worth'\]"
    ):
        choose_critic(make_mover(), critic, PPO())


def test_a_critic_that_would_train_the_policy_is_refused():
    policy = make_mover()
    with pytest.raises(SettingsError, match=r"got one that shares 2 with the policy"):
        choose_critic(policy, parasite(policy), PPO())
    policy.out.requires_grad_(False)  # frozen weights may be shared
    critic = parasite(policy)
    assert choose_critic(policy, critic, PPO()) is critic


def test_a_tiny_policy_brings_its_own_critic_or_takes_another():
    policy, critic = make_tiny(), make_state_critic()
    own = choose_critic(policy, None, PPO())
    ours, theirs = own.backbone.entry.weight, policy.backbone.entry.weight
    assert torch.equal(ours, theirs)
    assert ours is not theirs
    assert choose_critic(policy, critic, PPO()) is critic
    assert choose_critic(policy, None, GRPO()) is None


def test_actions_are_scaled_for_a_policy_of_another_space_and_for_no_other():
    env = TransformedEnv(make_env(), InitTracker())
    observed = env.reset()
    policy, space = make_mover(), make_space()
    first = policy(observed.clone())["action_chunk"][:, 0]
    alone = make_executor(policy, None, 2)(observed.clone())["action"]
    scaled = make_executor(policy, space, 2)(observed.clone())["action"]
    mean_and_std = torch.tensor([2.0, 1.0])  # of make_space: of 0 and 4, of 0 and 2
    torch.testing.assert_close(alone, first)
    # The environment's metadata declare -1 .. 1, to which the guard clips.
    expected = (mean_and_std + mean_and_std * first).clamp(-1, 1)
    torch.testing.assert_close(scaled, expected)


def test_a_class_of_ones_own_is_read_back_by_name(tmp_path):
    policy, env = make_mover(), make_env()
    nn.init.constant_(policy.out.bias, 0.5)
    save_finetuned(tmp_path / "policy", policy, None, env)
    again, space = load_checkpoint(tmp_path / "policy")
    assert space is None
    assert torch.equal(again.out.bias, policy.out.bias)
    executor = load_executor(tmp_path / "policy", metadata=env.metadata)
    observed = TransformedEnv(env, InitTracker()).reset()
    expected = policy(observed.clone())["action_chunk"][:, 0]
    assert torch.equal(executor(observed)["action"], expected)


def test_a_policy_that_makes_no_critic_gets_one_for_the_environment_or_asks():
    with pytest.raises(SettingsError, match=r"a critic with PPO for Mover, .*, got"):
        choose_critic(make_mover(), None, PPO())
    env = make_env()
    critic = choose_critic(make_mover(), None, PPO(), env)
    assert critic(env.reset())["state_value"].tolist() == [[0.0], [0.0]]


def test_an_executor_without_an_interval_executes_what_the_policy_names():
    policy = make_mover()
    assert make_executor(policy, None, None).replan_interval is None
    policy.n_action_steps = 1  # as LeRobot's policies name it
    assert make_executor(policy, None, None).replan_interval == 1
    assert make_executor(policy, None, 2).replan_interval == 2
