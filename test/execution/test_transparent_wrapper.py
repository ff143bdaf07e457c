from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.execution import PolicyWrapper
from torchrl_vla.schema import PolicySpace, space_of


class Policy(TensorDictModuleBase):
    in_keys, out_keys = [("observation", ("state",))], ["action"]
    optional_in_keys = ["guide_chunk"]
    chunk_size = 4
    policy_space = PolicySpace("robot")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.resets = 0

    def forward(self, td):
        return td.set("action", self.weight * td["observation", "state"])

    def reset(self):
        self.resets += 1


def test_members_are_forwarded_through_any_number_of_wrappers():
    policy = Policy()
    wrapper = PolicyWrapper(PolicyWrapper(policy))
    assert wrapper.in_keys == [("observation", "state")]
    assert wrapper.optional_in_keys == ["guide_chunk"]
    assert (wrapper.chunk_size, space_of(wrapper)) == (4, policy.policy_space)
    assert wrapper.weight is policy.weight
    wrapper.reset()
    assert policy.resets == 1
    td = TensorDict({"observation": {"state": torch.full((2, 1), 3.0)}}, [2])
    assert wrapper(td)["action"].tolist() == [[3.0], [3.0]]


def test_a_missing_or_private_member_stays_missing():
    policy = Policy()
    policy._inner = 1
    wrapper = PolicyWrapper(policy)
    with pytest.raises(AttributeError, match="'Policy' object has no attribute 'get_d"):
        _ = wrapper.get_dist
    with pytest.raises(AttributeError, match=r"'PolicyWrapper' object .* '_inner'"):
        _ = wrapper._inner


def test_a_wrapper_is_copied_with_its_policy():
    wrapper = PolicyWrapper(Policy())
    for other in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert other.chunk_size == 4
        assert other.weight is not wrapper.weight
