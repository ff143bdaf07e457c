"""What a critic of chunks learns, against values that are known."""

from __future__ import annotations

import pytest
import torch
from chunk_learning import LinearGaussian, decisions, make_critic
from torchrl.objectives import SoftUpdate

from torchrl_vla.objectives import BackupConfig, QChunkingLoss
from torchrl_vla.objectives.off_policy import chunk_q_loss
from torchrl_vla.policies import ChunkCriticConfig

STATE = ("observation", "state")


def learn(data, steps, **backup):
    torch.manual_seed(0)
    critic = make_critic(4, ChunkCriticConfig(hidden=32))
    policy = LinearGaussian(4)
    loss = QChunkingLoss(
        policy, critic, num_samples=1, backup=BackupConfig(gamma=0.9, **backup)
    )
    updater = SoftUpdate(loss, tau=0.1)
    optimizer = torch.optim.Adam(loss.critic_params.flatten_keys().values(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(data)["loss_qvalue"].backward()
        optimizer.step()
        updater.step()
    return lambda states, chunks: critic.values(states, chunks).mean(0)


def test_values_of_a_chain_of_decisions_of_different_lengths():
    """Three decisions of 4, 3 and 2 steps lead to a success that is paid 1."""
    torch.manual_seed(1)
    place = torch.arange(48) % 3
    data = decisions(
        48, 4, executed=torch.tensor([4, 3, 2])[place], terminated=place == 2
    )
    data[STATE] = torch.eye(3)[place]
    data["next"][STATE] = torch.eye(3)[(place + 1).clamp_max(2)]
    data["next", "reward"] = (place == 2).float().unsqueeze(-1)
    value = learn(data, 600)
    found = value(data[STATE], data["action_chunk"]).detach()
    by_hand = torch.tensor([0.9**7, 0.9**3, 1.0])
    means = torch.stack([found[place == p].mean() for p in range(3)])
    torch.testing.assert_close(means, by_hand, atol=0.05, rtol=0)


def half_that_succeed():
    """Of equal decisions half succeed after two steps, and half never."""
    torch.manual_seed(1)
    succeeds = torch.arange(64) % 2 == 0
    data = decisions(
        64,
        4,
        executed=torch.where(succeeds, 2, 4),
        terminated=succeeds,
        truncated=~succeeds,
    )
    data[STATE] = torch.ones(64, 3)
    data["next", "reward"] = succeeds.float().unsqueeze(-1)
    return data


@pytest.mark.parametrize(
    ("sees_the_end", "expected"), [(False, 0.5), (True, 0.0)], ids=["ours", "naive"]
)
def test_a_chunk_that_is_to_be_tried_is_worth_what_such_chunks_achieved(
    sees_the_end, expected, monkeypatch
):
    """A critic that sees how early an episode ended gives what is yet to come 0."""
    if sees_the_end:
        read = chunk_q_loss.read_chunk
        monkeypatch.setattr(
            chunk_q_loss, "read_chunk", lambda *a: (*read(*a)[:2], read(*a)[1])
        )
    value = learn(half_that_succeed(), 300, truncated_is_failure=True)
    fresh = torch.randn(200, 4, 2)
    found = value(torch.ones(200, 3), fresh).mean().item()
    assert found == pytest.approx(expected, abs=0.15)
