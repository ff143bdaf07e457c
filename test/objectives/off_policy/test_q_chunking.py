from __future__ import annotations

import pytest
import torch
from chunk_learning import (
    LinearGaussian,
    StateEncoder,
    decisions,
    make_critic,
    single_actions,
    torchrl_actor,
    torchrl_critics,
)
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_vla.objectives import BackupConfig, QCFQLLoss, QChunkingLoss
from torchrl_vla.policies import ChunkCriticConfig, OneStepPolicy
from torchrl_vla.schema import ObservationKeys


def parts(chunk_size=1, **config):
    torch.manual_seed(0)
    config = ChunkCriticConfig(members=2, hidden=8, **config)
    return LinearGaussian(chunk_size), make_critic(chunk_size, config)


def test_with_one_sample_and_one_action_it_is_torchrls_loss_without_entropy():
    policy, critic = parts()
    ours = QChunkingLoss(policy, critic, num_samples=1, backup=BackupConfig(gamma=0.9))
    theirs = SACLoss(
        torchrl_actor(policy),
        torchrl_critics(critic),
        loss_function="l2",
        alpha_init=1e-30,
        target_entropy=-2.0,
    )
    theirs.make_value_estimator(gamma=0.9)
    for loss in (ours, theirs):
        SoftUpdate(loss, tau=0.1)
    data = decisions(12, 1, terminated=torch.arange(12) % 3 == 0)
    torch.manual_seed(7)
    found = ours(data)["loss_qvalue"]
    torch.manual_seed(7)
    expected = theirs(single_actions(data))["loss_qvalue"]
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    own = ours.critic_params.get(("ensemble", "layers", "0", "weight")).grad
    other = theirs.qvalue_network_params.get(("module", "stages", "0")).grad
    torch.testing.assert_close(own, other)


def test_the_target_is_the_best_of_n_by_hand():
    policy, critic = parts(chunk_size=2)
    loss = QChunkingLoss(policy, critic, num_samples=3)
    by_sample = [
        [[1.0, 5.0], [2.0, 6.0]],
        [[4.0, 3.0], [7.0, 8.0]],
        [[0.0, 9.0], [9.0, 1.0]],
    ]
    values = torch.tensor(by_sample).movedim(1, 0)  # two members, three samples
    loss.critic.values = lambda features, chunk, counts=None: values
    # least of the members: (1, 5), (4, 3), (0, 1); best of the samples: 4 and 5
    best = loss.next_value(decisions(2, 2)["next"], torch.zeros(2, 3))
    assert best.tolist() == [4.0, 5.0]


def test_the_policy_is_neither_copied_nor_trained():
    policy, critic = parts()
    loss = QChunkingLoss(policy, critic)
    SoftUpdate(loss, tau=0.1)
    loss(decisions(4, 1))["loss_qvalue"].backward()
    assert all(p.grad is None for p in policy.parameters())
    assert not any("policy" in name for name, _ in loss.named_parameters())


class Flow:
    """A flow that makes ``2 * noise`` of noise."""

    chunk_size, action_dim = 3, 2

    def get_dist(self, tensordict):
        return self

    def flow_from(self, noise):
        return torch.stack([noise, 2 * noise], 1)

    def decode(self, path):
        return path[..., -1, :, :]


def one_step():
    encoder = StateEncoder()
    encoder.keys = ObservationKeys(image=None, instruction=None)
    return OneStepPolicy(encoder, action_dim=2, chunk_size=3)


def test_the_distance_from_the_flow_by_hand():
    """The untrained one-step policy makes 0: the distance is the mean of 4 noise^2."""
    _, critic = parts(chunk_size=3, replan_interval=2)
    loss = QCFQLLoss(one_step(), Flow(), critic, distillation=10.0)
    SoftUpdate(loss, tau=0.1)
    data = decisions(50, 3, executed=torch.full((50,), 2))
    noise = torch.randn(50, 3, 2)
    loss._noise = lambda td: noise
    out = loss(data)
    by_hand = (4 * noise[:, :2] ** 2).mean()
    torch.testing.assert_close(out["distance"], by_hand)
    with loss.with_critic("frozen"):
        worth = loss.critic.values(data["observation", "state"], torch.zeros(50, 3, 2))
    torch.testing.assert_close(out["loss_actor"], 10 * by_hand - worth.mean())
    out["loss_actor"].backward()
    rows = loss.one_step_params.get(("network", "out", "bias")).grad
    assert rows[:4].any()
    assert not rows[4:].any()  # the third action is not planned, and no deviation
    assert all(p.grad is None for p in loss.critic_params.values(True, True))


def test_settings_out_of_range_are_refused():
    policy, critic = parts()
    with pytest.raises(ValueError, match="num_samples"):
        QChunkingLoss(policy, critic, num_samples=0)
    with pytest.raises(ValueError, match=r"distillation >= 0, got -1\.0"):
        QCFQLLoss(one_step(), Flow(), critic, distillation=-1.0)
