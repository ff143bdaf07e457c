from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_vla.distributed import (
    Ranks,
    ShareSampler,
    clip_gradients,
    joined_ranks,
    shard,
)
from torchrl_vla.distributed.gradient_sharing import average_gradients
from torchrl_vla.distributed.sharding import _owners
from torchrl_vla.errors import SettingsError
from torchrl_vla.policies import BackboneConfig, TinyVLA


def test_without_a_process_group_sharding_names_torchrun():
    with pytest.raises(SettingsError, match=r"expected a process group.*torchrun"):
        shard(nn.Linear(1, 1))


def test_the_blocks_hold_every_parameter_once():
    policy = TinyVLA(
        action_dim=2,
        chunk_size=2,
        backbone=BackboneConfig(state_dim=3, hidden=8),
    )
    blocks = list(_owners(policy))
    held = [id(p) for block in blocks for p in block.parameters()]
    assert sorted(held) == sorted(id(p) for p in policy.parameters())
    assert policy not in blocks


def test_alone_nothing_is_shared():
    ranks = Ranks.current()
    assert ranks.is_first
    assert ranks.is_alone
    assert ranks.collect("a") == ["a"]
    ranks.agree("test", "value", 1, "")
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    average_gradients([weight], ranks)
    assert clip_gradients([weight], 1.0) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_shares_of_a_batch_add_up_to_it():
    class Counting:
        def sample(self, storage, batch_size):
            return torch.arange(batch_size), {}

    shares = [
        ShareSampler(Counting(), Ranks(r, 3)).sample(None, 9)[0] for r in range(3)
    ]
    assert torch.cat(shares).sort().values.tolist() == list(range(9))
    with pytest.raises(SettingsError, match="3 ranks share evenly, got 8"):
        ShareSampler(Counting(), Ranks(0, 3)).sample(None, 8)


def test_a_process_group_alone_shares_nothing():
    """TorchRL's distributed collectors make one in the process that learns."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert Ranks.current() == Ranks()
        with joined_ranks() as ranks:
            assert Ranks.current() is ranks
            assert ranks == Ranks(0, 1)
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()
