from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv
from torchrl.objectives.value import GAE

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.policies import BackboneConfig, TinyCritic, TinyVLA
from torchrl_vla.schema import InstructionTable


def make_policy() -> TinyVLA:
    torch.manual_seed(0)
    table = InstructionTable(["reach", "push"])
    return TinyVLA(
        action_dim=2,
        chunk_size=4,
        instructions=table,
        backbone=BackboneConfig(state_dim=3, hidden=16),
    )


def batch(policy, rows: int = 5) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (rows, 3, 16, 16), generator=generator)
    return TensorDict(
        {
            "observation": {
                "image": image.to(torch.uint8),
                "state": torch.randn(rows, 3, generator=generator),
            },
            "language_instruction": policy.instructions.ids[torch.arange(rows) % 2],
        },
        batch_size=[rows],
    )


def test_it_reads_what_the_policy_reads_and_begins_at_zero():
    policy = make_policy()
    critic = TinyCritic.from_policy(policy)
    assert critic.in_keys == policy.in_keys
    data = critic(batch(policy))
    assert torch.equal(data["state_value"], torch.zeros(5, 1))


def test_it_learns_without_touching_the_policy():
    policy = make_policy()
    critic = TinyCritic.from_policy(policy)
    before = [p.clone() for p in policy.parameters()]
    data, target = batch(policy), torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(60):
        loss = ((critic(data)["state_value"] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05  # the target follows the instruction; a constant gives 0.24
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))
    assert all(p.grad is None for p in policy.parameters())


def test_a_row_s_value_does_not_depend_on_the_rows_beside_it():
    policy = make_policy()
    critic = TinyCritic.from_policy(policy)
    torch.nn.init.normal_(critic.backbone.out.weight)
    data = batch(policy)
    together = critic.value(data)
    alone = torch.cat([critic.value(row.unsqueeze(0)) for row in data])
    assert torch.equal(together, alone)
    assert together.unique().numel() == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cameras", [None, ()])
@pytest.mark.parametrize("options", [{}, {"vectorized": False}, {"shifted": True}])
def test_torchrls_gae_takes_it(dtype, cameras, options):
    env = TabletopEnv(3, image_size=16, max_steps=12, seed=0)
    backbone = BackboneConfig(state_dim=2, cameras=cameras, hidden=8)
    policy = TinyVLA(
        action_dim=2, chunk_size=4, backbone=backbone, instructions=env.instructions
    ).to(dtype)
    with torch.no_grad():
        policy.backbone.out.weight.zero_()  # it stays, and 3 decisions fill an episode
        policy.backbone.out.bias.zero_()
        rollout = TransformedEnv(env, MultiAction(4)).rollout(
            3, lambda td: policy(td).set("action_chunk", td["action_chunk"].float())
        )
    critic = TinyCritic.from_policy(policy)
    torch.nn.init.normal_(critic.backbone.out.weight, std=0.1)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop|torch.search")
        data = gae(rollout.clone())
    assert data["state_value"].dtype == dtype
    direct = critic(rollout.clone())["state_value"]
    torch.testing.assert_close(data["state_value"], direct, rtol=0.02, atol=0.02)
    assert data["advantage"].isfinite().all()
