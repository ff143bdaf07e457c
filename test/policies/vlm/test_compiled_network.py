import copy

import pytest
import torch
from tiny_vlms import make_observations, tiny_trunk
from torch import nn

from torchrl_vla.policies.vlm.action_expert import ExpertConfig
from torchrl_vla.policies.vlm.compiled_network import compile_network
from torchrl_vla.policies.vlm.vlm_flow_policy import VLMFlowPolicy


def test_compiled_chunks_are_the_same_and_weights_keep_their_names():
    policy = VLMFlowPolicy(
        tiny_trunk("smolvlm"),
        action_dim=2,
        chunk_size=4,
        num_steps=2,
        expert=ExpertConfig(hidden=16),
    ).eval()
    data, names = make_observations(2), set(policy.state_dict())
    with torch.no_grad():
        expected = policy(data.clone())["action_chunk"]
        policy.compile_networks(backend="eager")
        compiled = policy(data.clone())["action_chunk"]
    assert policy.expert._compiled_call_impl._compiled is not None
    assert policy.trunk.decoder._compiled_call_impl._compiled is not None
    torch.testing.assert_close(compiled, expected)
    assert set(policy.state_dict()) == names
    assert copy.deepcopy(policy).expert._compiled_call_impl is None


def fail(graph, inputs):
    raise RuntimeError("no compiler here")


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return 2 * self.layer(x)


def test_where_compiling_fails_there_is_one_warning_and_the_network_runs():
    layer, x = Doubling(), torch.ones(1, 2)
    expected = layer(x)
    compile_network(layer, backend=fail)
    with pytest.warns(RuntimeWarning, match="expected to compile Doubling, got"):
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)


def test_an_error_of_the_network_s_own_is_raised():
    layer = Doubling()
    compile_network(layer, backend="eager")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(1, 3))
