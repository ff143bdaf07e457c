from __future__ import annotations

import pytest
import torch
from chunk_learning import StateEncoder, make_critic
from tensordict import TensorDict

from torchrl_vla.policies import (
    BackboneConfig,
    ChunkCriticConfig,
    ObservationEncoder,
    TinyChunkCritic,
    TinyVLA,
)
from torchrl_vla.schema import SchemaError


def observations(n=6):
    torch.manual_seed(1)
    data = TensorDict({"observation": {"state": torch.randn(n, 3)}}, [n])
    data["observation", "image"] = torch.randint(0, 255, (n, 3, 16, 16)).byte()
    return data.set("language_instruction", ["pick"] * n)


def base():
    torch.manual_seed(0)
    backbone = BackboneConfig(state_dim=3, hidden=16)
    return TinyVLA(action_dim=2, chunk_size=4, backbone=backbone)


def test_members_differ_and_each_is_a_network_of_its_own():
    critic = make_critic(4, ChunkCriticConfig(members=3, hidden=8))
    features, chunk = torch.randn(5, 3), torch.randn(5, 4, 2)
    values = critic.values(features, chunk)
    assert values.shape == (3, 5)
    assert len(values[:, 0].unique()) == 3
    values[1].sum().backward()
    grad = critic.ensemble.layers[0].weight.grad
    assert grad[1].any()
    assert not grad[[0, 2]].any()


def test_a_position_that_does_not_count_has_no_influence_not_even_nan():
    critic = make_critic(4, ChunkCriticConfig(hidden=8, replan_interval=3))
    features, chunk = torch.randn(2, 3), torch.randn(2, 4, 2)
    counts = torch.tensor([[True, True, True, True], [True, False, True, True]])
    expected = critic.values(features, chunk, counts)
    chunk[0, 3] = chunk[1, 1] = chunk[1, 3] = torch.nan
    chunk.requires_grad_()
    found = critic.values(features, chunk, counts)
    assert torch.equal(found, expected)
    found.sum().backward()
    silent = ~(counts & (torch.arange(4) < 3))
    assert not chunk.grad[silent].any()
    assert chunk.grad[~silent].any(-1).all()


def test_layer_normalization_bounds_what_is_predicted_far_from_the_data():
    critic = make_critic(2, ChunkCriticConfig(hidden=16))
    features, direction = torch.randn(1, 3), torch.randn(1, 2, 2)
    far, farther = (critic.values(features, k * direction) for k in (1e4, 1e8))
    torch.testing.assert_close(far, farther, atol=1e-2, rtol=0)


def test_a_frozen_encoder_stores_the_features_that_it_computes():
    policy = base()
    critic = TinyChunkCritic.from_policy(policy)
    data = observations()
    data["action_chunk"] = torch.randn(6, 4, 2)
    expected = critic(data.clone())["state_action_value"]
    critic.encoder.store(data)
    kept = data.select("observation_features", "action_chunk")
    assert torch.equal(critic(kept)["state_action_value"], expected)
    assert not any(p.requires_grad for p in critic.encoder.parameters())


def test_the_encoder_starts_as_the_policys_backbone_below_its_last_layer():
    policy = base()
    encoder = ObservationEncoder.from_policy(policy)
    data = observations()
    out = policy.backbone.out
    chunk = out(encoder(data)).unflatten(-1, (4, 2))
    torch.testing.assert_close(chunk, policy(data)["action_chunk"])


def test_a_trained_encoder_stores_nothing_and_has_a_gradient():
    critic = TinyChunkCritic.from_policy(base(), frozen=False)
    data = critic.encoder.store(observations())
    assert "observation_features" not in data
    data["action_chunk"] = torch.zeros(6, 4, 2)
    critic(data)["state_action_value"].sum().backward()
    assert critic.encoder.backbone.entry.weight.grad.any()


def test_chunks_of_another_shape_are_refused():
    critic = make_critic(4, ChunkCriticConfig(hidden=8))
    with pytest.raises(SchemaError, match=r"expected a chunk \[5, 4, 2\] at 'action_"):
        critic.values(torch.zeros(5, 3), torch.zeros(5, 3, 2))
    with pytest.raises(
        ValueError, match=r"replan_interval in 1\.\.chunk_size=4, got 5"
    ):
        make_critic(4, ChunkCriticConfig(replan_interval=5))
    with pytest.raises(ValueError, match="members"):
        ChunkCriticConfig(members=0)


def test_the_values_are_written_for_any_batch():
    critic = TinyChunkCritic(StateEncoder(), action_dim=2, chunk_size=4)
    data = TensorDict(
        {
            "observation": {"state": torch.randn(2, 3, 3)},
            "action_chunk": torch.randn(2, 3, 4, 2),
        },
        batch_size=[2, 3],
    )
    values = critic(data)["state_action_value"]
    assert values.shape == (2, 3, 2)
    torch.testing.assert_close(
        critic(data[1, 2].exclude("state_action_value"))["state_action_value"],
        values[1, 2],
    )
