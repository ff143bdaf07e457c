"""LeRobot's flow policies with a likelihood: their chunks, identity and gradients."""

from __future__ import annotations

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import observe, to_lerobot_batch
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.policies import FlowSDENoise, LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot import LeRobotFlowPolicy

pytestmark = pytest.mark.lerobot

@pytest.fixture(scope="module")
def made(checkpoint):
    return checkpoint("smolvla")


def load(made, **overrides):
    return LeRobotPolicyWrapper.from_pretrained(made.folder, overrides=overrides)


def test_without_noise_the_chunk_is_lerobots_own(made):
    policy = LeRobotFlowPolicy(load(made), noise=FlowSDENoise(0.5))
    (td,) = observe(made, 1, 3)
    start = torch.randn(3, policy.chunk_size, policy.path_dim)
    own = policy.wrapper._asked
    batch = own.preprocessor(to_lerobot_batch(td))
    expected = own.postprocessor(policy.wrapper.policy.predict_action_chunk(batch, noise=start))
    with torch.no_grad():
        path = policy.get_dist(td).flow_from(start)
        got = policy.chunk_of(path)
    print((got-expected).abs().max())
    assert torch.equal(got, expected)
    with set_interaction_type(InteractionType.RANDOM), torch.no_grad():
        out = policy(td.clone())
    print({k: v.shape for k, v in out.items(True,True) if hasattr(v,'shape')})
    new = policy.element_log_probs(out)
    print((new-out["element_log_probs"]).abs().max())
    new.sum().backward()
    print([n for n,p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum()>0][:60])
    for i in range(3):
        print((policy.element_log_probs(out[i:i+1])-out["element_log_probs"][i:i+1]).abs().max())
