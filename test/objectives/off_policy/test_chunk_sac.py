from __future__ import annotations

import pytest
import torch
from chunk_learning import (
    LinearGaussian,
    check_equal_critic_gradients,
    decisions,
    make_critic,
    single_actions,
    torchrl_actor,
    torchrl_critics,
)
from torch.distributions import normal
from torchrl.objectives import REDQLoss, SACLoss, SoftUpdate

from torchrl_vla.objectives import BackupConfig, ChunkSACLoss, EntropyConfig
from torchrl_vla.policies import ChunkCriticConfig
from torchrl_vla.schema import MissingKeyError, SchemaError

GAMMA = 0.9


def parts(chunk_size=1, members=2, replan_interval=None):
    torch.manual_seed(0)
    config = ChunkCriticConfig(
        members=members, hidden=8, depth=2, replan_interval=replan_interval
    )
    return LinearGaussian(chunk_size), make_critic(chunk_size, config)


def make_loss(policy, critic, **options):
    options.setdefault("backup", BackupConfig(gamma=GAMMA))
    loss = ChunkSACLoss(policy, critic, **options)
    SoftUpdate(loss, tau=0.1)
    return loss


def seeded(loss, data):
    torch.manual_seed(7)
    return loss(data)


def check_equal_gradients(ours, theirs):
    """Compare the critic's and the actor's gradients, member by member."""
    check_equal_critic_gradients(ours, theirs)
    actor, twin = ours.actor_network_params, theirs.actor_network_params
    head = twin.get(("module", "0", "module"))
    for key in (("mean", "weight"), ("mean", "bias"), ("log_std",)):
        torch.testing.assert_close(actor.get(key).grad, head.get(key).grad)
        assert actor.get(key).grad.any()


@pytest.mark.parametrize("members", [2, 5])
def test_with_chunks_of_one_action_it_is_torchrls_sac_loss(members):
    policy, critic = parts(members=members)
    ours = make_loss(policy, critic, entropy=EntropyConfig(initial_alpha=0.3))
    theirs = SACLoss(
        torchrl_actor(policy),
        torchrl_critics(critic),
        num_qvalue_nets=members,
        loss_function="l2",
        alpha_init=0.3,
        target_entropy=-2.0,
    )
    theirs.make_value_estimator(gamma=GAMMA)
    SoftUpdate(theirs, tau=0.1)
    ended = torch.arange(12) % 3 == 0
    data = decisions(12, 1, terminated=ended, truncated=torch.arange(12) == 1)
    found, expected = seeded(ours, data), seeded(theirs, single_actions(data))
    for name in ("loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy"):
        torch.testing.assert_close(found[name], expected[name])
    total = ("loss_qvalue", "loss_actor", "loss_alpha")
    sum(found[name] for name in total).backward()
    sum(expected[name] for name in total).backward()
    check_equal_gradients(ours, theirs)
    torch.testing.assert_close(ours.log_alpha.grad, theirs.log_alpha.grad)


def test_with_a_part_of_the_ensemble_it_is_torchrls_redq_loss():
    policy, critic = parts(members=5)
    ours = make_loss(
        policy,
        critic,
        backup=BackupConfig(gamma=GAMMA, members=2),
        entropy=EntropyConfig(initial_alpha=0.3, learned=False),
    )
    theirs = REDQLoss(
        torchrl_actor(policy),
        torchrl_critics(critic)[0],
        num_qvalue_nets=5,
        sub_sample_len=2,
        loss_function="l2",
        alpha_init=0.3,
        fixed_alpha=True,
        target_entropy=-2.0,
        gSDE=False,
    )
    theirs.make_value_estimator(gamma=GAMMA)
    SoftUpdate(theirs, tau=0.1)
    with torch.no_grad():  # REDQLoss makes its members anew: give it ours
        for member, module in enumerate(torchrl_critics(critic)):
            for name, value in module.named_parameters():
                key = tuple(name.split("."))
                for params in (
                    theirs.qvalue_network_params,
                    theirs.target_qvalue_network_params,
                ):
                    params.get(key).data[member] = value
    data = decisions(12, 1, terminated=torch.arange(12) % 3 == 0)
    # REDQ draws its members before the actions, and both actions at once.
    torch.manual_seed(7)
    drawn = torch.randperm(5)
    noise = torch.randn(2, 12, 1, 2)

    ours_in_turn = iter([noise[1], noise[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda *_, **__: drawn)
        patch.setattr(torch, "randn_like", lambda _: next(ours_in_turn))
        found = ours(data)
        patch.setattr(normal, "_standard_normal", lambda *_, **__: noise.squeeze(-2))
        expected = theirs(single_actions(data))
    for name in ("loss_qvalue", "loss_actor"):
        torch.testing.assert_close(found[name], expected[name])
    (found["loss_qvalue"] + found["loss_actor"]).backward()
    (expected["loss_qvalue"] + expected["loss_actor"]).backward()
    check_equal_gradients(ours, theirs)


def test_targets_of_decisions_of_different_lengths_by_hand():
    policy, critic = parts(chunk_size=4)
    loss = make_loss(policy, critic)
    data = decisions(
        4,
        4,
        executed=torch.tensor([4, 2, 3, 1]),
        terminated=torch.tensor([False, True, False, False]),
        truncated=torch.tensor([False, False, True, False]),
    )
    data["next", "reward"] = torch.tensor([[0.0], [1.0], [0.5], [0.25]])
    loss.next_value = lambda following, features: torch.full((4,), 10.0)
    # gamma^4 * 10; success ends; a truncation goes on; one step
    by_hand = [0.6561 * 10, 1.0, 0.5 + 0.729 * 10, 0.25 + 0.9 * 10]
    torch.testing.assert_close(loss.targets(data), torch.tensor(by_hand))
    failing = make_loss(
        policy, critic, backup=BackupConfig(gamma=GAMMA, truncated_is_failure=True)
    )
    failing.next_value = loss.next_value
    by_hand[2] = 0.5
    torch.testing.assert_close(failing.targets(data), torch.tensor(by_hand))


def test_what_was_not_executed_has_no_gradient_at_all():
    policy, critic = parts(chunk_size=4, replan_interval=3)
    loss = make_loss(policy, critic)
    data = decisions(
        3,
        4,
        executed=torch.tensor([3, 1, 2]),
        terminated=torch.tensor([False, True, False]),
    )
    chunk = data["action_chunk"].requires_grad_()
    loss(data)["loss_qvalue"].backward()
    executed = data["next", "is_executed"]
    assert not chunk.grad[~executed].any()
    assert chunk.grad[executed].any(-1).all()


def test_what_lies_behind_the_planned_positions_has_no_influence():
    policy, critic = parts(chunk_size=4, replan_interval=3)
    loss = make_loss(policy, critic)
    data = decisions(6, 4, executed=torch.full((6,), 3))
    expected = seeded(loss, data)
    other = data.clone()
    other["action_chunk"][:, 3:] = torch.nan
    found = seeded(loss, other)
    for name in loss.out_keys:
        assert torch.equal(found[name], expected[name]), name
    found["loss_actor"].backward()
    mean = loss.actor_network_params.get(("mean", "weight"))
    assert mean.grad[:6].any()
    assert not mean.grad[6:].any()  # rows of the fourth action


def test_an_end_of_an_episode_does_not_tell_the_critic_how_it_ended():
    """Else no chunk that has not succeeded yet would be valued as one that will."""
    _, critic = parts(chunk_size=4)
    loss = make_loss(LinearGaussian(4), critic)
    data = decisions(
        2,
        4,
        executed=torch.tensor([2, 4]),
        terminated=torch.tensor([True, False]),
    )
    seen = []
    values = loss.critic.values
    loss.critic.values = lambda f, c, counts=None: (
        seen.append(counts),
        values(f, c, counts),
    )[1]
    loss(data)
    assert seen[0].all()
    cut = decisions(1, 4, executed=torch.tensor([2]))  # by the end of the rollout
    seen.clear()
    loss(cut)
    assert seen[0].tolist() == [[True, True, False, False]]


def test_the_value_after_a_success_may_be_nan():
    policy, critic = parts(chunk_size=2)
    loss = make_loss(policy, critic)
    data = decisions(3, 2, terminated=torch.ones(3, dtype=torch.bool))
    data["next", "observation", "state"].fill_(torch.nan)
    out = loss(data)
    assert all(out[name].isfinite() for name in loss.out_keys)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda d: d.exclude(("next", "executed_steps")),
            MissingKeyError,
            r"expected \('next', 'executed_steps'\) of decisions",
        ),
        (
            lambda d: d.set(("next", "is_executed"), d["next", "is_executed"].float()),
            SchemaError,
            r"expected bool \[4, 3\] at \('next', 'is_executed'\)",
        ),
        (
            lambda d: d.set(
                ("next", "is_executed"), torch.zeros(4, 3, dtype=torch.bool)
            ),
            SchemaError,
            "got none in 4 of 4",
        ),
    ],
)
def test_decisions_without_what_the_loss_needs_are_refused(spoil, error, message):
    loss = make_loss(*parts(chunk_size=3))
    with pytest.raises(error, match=message):
        loss(spoil(decisions(4, 3)))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\], got 1.5"):
        BackupConfig(gamma=1.5)
    with pytest.raises(ValueError, match="members >= 1, got 0"):
        BackupConfig(members=0)
    with pytest.raises(ValueError, match=r"initial_alpha > 0, got 0.0"):
        EntropyConfig(initial_alpha=0.0)


def test_an_update_moves_the_target_critic_towards_the_trained_one():
    policy, critic = parts()
    loss = ChunkSACLoss(policy, critic)
    updater = SoftUpdate(loss, tau=0.5)
    key = ("ensemble", "layers", "0", "weight")
    before = loss.target_critic_params.get(key).clone()
    loss.critic_params.get(key).data.add_(1.0)
    updater.step()
    torch.testing.assert_close(loss.target_critic_params.get(key), before + 0.5)
