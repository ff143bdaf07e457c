from __future__ import annotations

import pytest
import torch
from chunk_learning import (
    STATE,
    STATE_DIM,
    LinearGaussian,
    decisions,
    make_critic,
    single_actions,
    torchrl_actor,
    torchrl_critics,
)
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import IQLLoss, SoftUpdate

from torchrl_vla.objectives import BackupConfig, ChunkIQLLoss
from torchrl_vla.policies import ChunkCriticConfig


def parts(chunk_size):
    torch.manual_seed(0)
    critic = make_critic(chunk_size, ChunkCriticConfig(members=2, hidden=8))
    value = TensorDictModule(nn.Linear(STATE_DIM, 1), [STATE], ["state_value"])
    return LinearGaussian(chunk_size), critic, value


def make_loss(policy, critic, value):
    loss = ChunkIQLLoss(
        policy,
        critic,
        value,
        expectile=0.8,
        temperature=2.0,
        backup=BackupConfig(gamma=0.9),
    )
    SoftUpdate(loss, tau=0.1)
    return loss


def test_with_chunks_of_one_action_it_is_torchrls_iql_loss():
    policy, critic, value = parts(1)
    ours = make_loss(policy, critic, value)
    theirs = IQLLoss(
        torchrl_actor(policy),
        torchrl_critics(critic),
        value,
        num_qvalue_nets=2,
        loss_function="l2",
        expectile=0.8,
        temperature=2.0,
    )
    theirs.make_value_estimator(gamma=0.9)
    SoftUpdate(theirs, tau=0.1)
    data = decisions(12, 1, terminated=torch.arange(12) % 3 == 0)
    found, expected = ours(data), theirs(single_actions(data))
    names = ("loss_qvalue", "loss_value", "loss_actor")
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
    sum(found[name] for name in names).backward()
    sum(expected[name] for name in names).backward()
    pairs = [
        (ours.value_network_params, theirs.value_network_params, ("module", "weight")),
        (ours.value_network_params, theirs.value_network_params, ("module", "bias")),
    ]
    for own, other, key in pairs:
        torch.testing.assert_close(own.get(key).grad, other.get(key).grad)
    own = ours.actor_network_params.get(("mean", "weight")).grad
    head = theirs.actor_network_params.get(("module", "0", "module", "mean", "weight"))
    torch.testing.assert_close(own, head.grad)
    own = ours.critic_params.get(("ensemble", "layers", "0", "weight")).grad
    other = theirs.qvalue_network_params.get(("module", "stages", "0")).grad
    torch.testing.assert_close(own, other)
    assert own.any()


def test_only_what_was_executed_is_cloned():
    loss = make_loss(*parts(4))
    data = decisions(
        3, 4, executed=torch.tensor([1, 1, 1]), terminated=torch.ones(3).bool()
    )
    expected = loss(data)
    expected["loss_actor"].backward()
    rows = loss.actor_network_params.get(("mean", "weight")).grad
    assert rows[:2].any()
    assert not rows[2:].any()
    other = data.clone()
    other["action_chunk"][:, 1:] = 7.0
    log_prob = loss._log_prob(
        other, other["action_chunk"], other["next", "is_executed"]
    )
    same = loss._log_prob(data, data["action_chunk"], data["next", "is_executed"])
    assert torch.equal(log_prob, same)


def test_the_expectile_by_hand():
    """One decision is 1 above the value, the other 1 below it: 0.8 and 0.2."""
    policy, critic, value = parts(2)
    loss = make_loss(policy, critic, value)
    data = decisions(2, 2)
    loss._value = lambda td: torch.zeros(2)
    loss.pessimistic = lambda values: torch.tensor([1.0, -1.0])
    torch.testing.assert_close(loss(data)["loss_value"], torch.tensor(0.5))


@pytest.mark.parametrize(("expectile", "temperature"), [(1.0, 1.0), (0.5, -1.0)])
def test_settings_out_of_range_are_refused(expectile, temperature):
    with pytest.raises(ValueError, match=r"expected expectile in \(0, 1\)"):
        ChunkIQLLoss(*parts(1), expectile=expectile, temperature=temperature)
