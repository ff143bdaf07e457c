from __future__ import annotations

import pytest
import torch
from robot_space_fakes import Mover, RewardRight, make_mover, make_state_critic
from torchrl.envs import TransformedEnv

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    Rollouts,
    finetune,
    make_decision_env,
)
from torchrl_vla.recipes.finetuning.learner import Learner


class Crowd(Mover):
    """Its log-densities depend on the batch: kernels that round otherwise, but more."""

    def predict_mean_and_log_std(self, tensordict):
        mean, log_std = super().predict_mean_and_log_std(tensordict)
        return mean + 1e-3 * mean.detach().mean(), log_std


@pytest.mark.parametrize("recompute", [True, False])
def test_log_probabilities_are_recomputed_in_the_batches_that_learn(
    recompute, tmp_path
):
    settings = FinetuneSettings(
        iterations=1, epochs=1, minibatch_size=5, recompute=recompute, eval_episodes=4
    )
    critic = make_state_critic()  # it learns alone in the first iteration
    result = finetune(
        Crowd(),
        None,
        TabletopEnv(4, image_size=16, num_blocks=2, max_steps=40),
        tmp_path,
        settings,
        critic=critic,
        progress=False,
    )
    assert (result.log[0]["max_ratio"] == 1.0) is recompute


def learn(algorithm, target_kl, epochs):
    """Learn from one batch as a whole; return policy, critic and what happened."""
    policy, critic = make_mover(), make_state_critic()
    tabletop = TabletopEnv(4, image_size=16, num_blocks=2, max_steps=12, seed=0)
    env = TransformedEnv(tabletop, RewardRight())
    decisions = make_decision_env(
        env, None, chunk_size=4, group_size=4, reward="environment"
    )
    rollout = Rollouts(decisions, policy, 3).collect(1)
    settings = FinetuneSettings(
        algorithm=algorithm, epochs=epochs, lr=0.1, target_kl=target_kl
    )
    given = critic if algorithm.needs_critic else None
    learner = Learner(policy, None, settings, None, given)
    torch.manual_seed(0)
    numbers = learner.learn(rollout, 1)
    return policy.out.weight, critic.module.weight, numbers["policy_update_fraction"]


@pytest.mark.parametrize(
    "algorithm",
    [PPO(critic_warmup=0), GRPO(group_size=4, keep=None)],
    ids=["ppo", "grpo"],
)
def test_a_policy_that_has_gone_far_rests_while_the_critic_goes_on(algorithm):
    once, critic_once, _ = learn(algorithm, None, epochs=1)
    thrice, _, share = learn(algorithm, None, epochs=3)
    assert not torch.equal(once, thrice)
    assert share == 1.0
    rested, critic, share = learn(algorithm, 1e-6, epochs=3)
    assert torch.equal(rested, once)  # the first step began where the batch was drawn
    assert share == pytest.approx(1 / 3)
    assert torch.equal(critic, critic_once) is not algorithm.needs_critic


class HalfWhenActing(Mover):
    """Acts in bfloat16, as a server in autocast does, and learns in float32."""

    def forward(self, tensordict):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(tensordict)

    def predict_mean_and_log_std(self, tensordict):
        mean, log_std = super().predict_mean_and_log_std(tensordict)
        return mean.float(), log_std  # the precision does not show in the dtype


def test_acting_in_another_precision_is_refused_or_recomputed(tmp_path):
    def tune(folder, **options):
        env = TabletopEnv(4, image_size=16, num_blocks=2, max_steps=40)
        settings = FinetuneSettings(iterations=1, epochs=1, eval_episodes=4, **options)
        torch.manual_seed(0)
        policy = HalfWhenActing()
        torch.nn.init.normal_(policy.out.weight)
        critic = make_state_critic()
        return finetune(
            policy, None, env, folder, settings, critic=critic, progress=False
        )

    message = r"again in iteration 1, got ratios up to .* precision .* recompute=True"
    with pytest.raises(SettingsError, match=message):
        tune(tmp_path / "stored")
    assert tune(tmp_path / "again", recompute=True).log[0]["max_ratio"] < 1.01


def test_the_reference_shares_what_is_frozen_and_nothing_else():
    policy = make_mover()
    settings = FinetuneSettings(algorithm=GRPO(), reference_kl_coeff=0.1)
    reference = Learner(policy, None, settings, None).reference
    assert reference.eyes.weight is policy.eyes.weight
    assert reference.out.weight is not policy.out.weight
    assert torch.equal(reference.out.weight, policy.out.weight)
    assert not any(p.requires_grad for p in reference.parameters())
    assert policy.out.weight.requires_grad
