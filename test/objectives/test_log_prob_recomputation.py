from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.objectives import (
    ChunkPPOLoss,
    add_reference_log_probs,
    recompute_log_probs,
)
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA
from torchrl_vla.schema import SchemaError
from torchrl_vla.tokenizers import UniformActionTokenizer


def make_policy(dtype=torch.float32) -> TinyTokenVLA:
    torch.manual_seed(0)
    return TinyTokenVLA(
        action_dim=2,
        chunk_size=3,
        action_tokenizer=UniformActionTokenizer(5, low=-1.0, high=1.0),
        backbone=BackboneConfig(state_dim=4, cameras=(), hidden=16),
    ).to(dtype)


def decisions(policy, rows: int) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    data = TensorDict(
        {"observation": {"state": torch.randn(rows, 4, generator=generator)}},
        batch_size=[rows],
    ).set("language_instruction", ["push"] * rows)
    with torch.no_grad():
        data = policy(data)
    data["advantage"] = torch.randn(rows, 1, generator=generator)
    data["next", "is_executed"] = torch.ones(rows, 3, dtype=torch.bool)
    return data


@pytest.mark.parametrize("minibatch_size", [1, 3, 100])
def test_it_writes_what_the_policy_wrote(minibatch_size):
    policy = make_policy()
    data = decisions(policy, 10)
    before = data.clone()
    recompute_log_probs(policy, data, minibatch_size=minibatch_size)
    for key in ("element_log_probs", "log_probs"):
        assert torch.equal(data[key], before[key])
        assert not data[key].requires_grad


def test_after_recomputing_in_bfloat16_every_ratio_begins_at_one():
    actor, learner = make_policy(), make_policy(torch.bfloat16)
    data = decisions(actor, 21)
    stored = ChunkPPOLoss(learner, granularity="token")(data)
    assert stored["max_ratio"].item() > 1.0  # the two dtypes differ
    recompute_log_probs(learner, data, minibatch_size=8)
    for rows in (data, data[:5], data[torch.randperm(21)]):
        out = ChunkPPOLoss(learner, granularity="token")(rows)
        assert out["max_ratio"].item() == 1.0
        assert out["clip_fraction"].item() == 0.0
        assert out["kl_approx"].item() == 0.0


def test_the_reference_s_are_written_beside_the_policy_s():
    policy = make_policy()
    data = decisions(policy, 4)
    before = data["element_log_probs"].clone()
    with torch.no_grad():
        policy.backbone.out.bias[0] += 1.0
    add_reference_log_probs(policy, data)
    assert torch.equal(data["element_log_probs"], before)
    assert torch.equal(data["reference_log_probs"], policy.element_log_probs(data))
    assert not torch.equal(data["reference_log_probs"], before)


def test_a_batch_with_time_is_refused():
    data = decisions(make_policy(), 4).reshape(2, 2)
    with pytest.raises(SchemaError, match=r"expected a batch of decisions \[N\]"):
        recompute_log_probs(make_policy(), data)
