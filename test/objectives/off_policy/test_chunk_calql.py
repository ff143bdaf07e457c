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
from torchrl.objectives import CQLLoss, SoftUpdate

from torchrl_vla.objectives import BackupConfig, ChunkCalQLLoss, EntropyConfig
from torchrl_vla.policies import ChunkCriticConfig
from torchrl_vla.schema import MissingKeyError


def parts(chunk_size=1, **config):
    torch.manual_seed(0)
    config = ChunkCriticConfig(members=2, hidden=8, **config)
    return LinearGaussian(chunk_size), make_critic(chunk_size, config)


def make_loss(policy, critic, **options):
    loss = ChunkCalQLLoss(policy, critic, backup=BackupConfig(gamma=0.9), **options)
    SoftUpdate(loss, tau=0.1)
    return loss


def test_with_chunks_of_one_action_it_is_torchrls_cql_loss():
    """One random chunk, and the next observation equal: see the class's note."""
    policy, critic = parts()
    ours = make_loss(
        policy,
        critic,
        num_random=1,
        calibrated=False,
        entropy=EntropyConfig(initial_alpha=0.3, in_backup=False),
    )
    theirs = CQLLoss(
        torchrl_actor(policy),
        torchrl_critics(critic),
        loss_function="l2",
        alpha_init=0.3,
        target_entropy=-2.0,
        num_random=1,
    )
    theirs.make_value_estimator(gamma=0.9)
    SoftUpdate(theirs, tau=0.1)
    data = decisions(12, 1, terminated=torch.arange(12) % 3 == 0)
    data["next", "observation"] = data["observation"].clone()
    torch.manual_seed(7)
    found = ours(data)
    torch.manual_seed(7)
    expected = theirs(single_actions(data))
    torch.testing.assert_close(found["loss_qvalue"], expected["loss_qvalue"])
    torch.testing.assert_close(found["loss_cql"], expected["loss_cql"])
    (found["loss_qvalue"] + found["loss_cql"]).backward()
    (expected["loss_qvalue"] + expected["loss_cql"]).backward()
    check_equal_critic_gradients(ours, theirs)


def test_the_penalty_stops_at_the_return_that_the_data_reached():
    policy, critic = parts(chunk_size=3)
    loss = make_loss(policy, critic, num_random=2)
    data = decisions(4, 3).set("return_to_go", torch.full((4, 1), 1e3))
    features = torch.zeros(4, 3)
    torch.manual_seed(7)
    unseen = loss._unseen(data, features)
    assert unseen.shape == (2, 6, 4)
    assert (unseen[:, [0, 3]] < 500).all()  # uniform chunks are not calibrated
    assert (unseen[:, [1, 2, 4, 5]] > 500).all()
    loss(data)["loss_cql"].backward()
    assert loss.critic_params.get(("ensemble", "layers", "0", "weight")).grad.any()
    with pytest.raises(MissingKeyError, match="expected 'return_to_go' of decisions"):
        loss(data.exclude("return_to_go"))


def test_positions_that_are_not_planned_do_not_count_in_the_density():
    """Two of three actions of two numbers: a uniform chunk has the density 2^-4."""
    policy, critic = parts(chunk_size=3, replan_interval=2)
    loss = make_loss(policy, critic, num_random=1, calibrated=False)
    data = decisions(4, 3, executed=torch.full((4,), 2))
    loss.critic.values = lambda features, chunk, counts=None: torch.zeros(2, 4)
    unseen = loss._unseen(data, torch.zeros(4, 3))
    torch.testing.assert_close(unseen[:, 0].exp(), torch.full((2, 4), 16.0))
