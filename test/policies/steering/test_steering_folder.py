from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_vla.policies import (
    BackboneConfig,
    HeadConfig,
    ObservationEncoder,
    ResidualPolicy,
    TinyVLA,
    as_policy,
    load_policy,
    save_policy,
)
from torchrl_vla.schema import ObservationKeys, SchemaError

BACKBONE = BackboneConfig(state_dim=3, cameras=(), hidden=8)


class Users(nn.Module):
    """A policy of a user's, which knows nothing of ours."""

    chunk_size, action_dim = 4, 2

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, tensordict):
        return self.layer(tensordict["observation", "state"]).unflatten(-1, (4, 2))


def make(base):
    torch.manual_seed(0)
    encoder = ObservationEncoder(BACKBONE, keys=ObservationKeys(image=None))
    policy = ResidualPolicy(base, encoder, bound=0.2, head=HeadConfig(hidden=8))
    policy.correction.out.weight.data.normal_()
    return policy.eval()


def seen():
    data = TensorDict({"observation": {"state": torch.ones(2, 3)}}, [2])
    return data.set("language_instruction", ["pick", "place"])


def test_a_users_module_inside_is_stored_and_read_back(tmp_path):
    policy = make(as_policy(Users()))
    again = load_policy(save_policy(tmp_path / "policy", policy))
    assert type(again.policy.module) is Users
    found, expected = (p(seen())["action_chunk"] for p in (again, policy))
    assert torch.equal(found, expected)


def test_one_around_another_is_stored_and_read_back(tmp_path):
    policy = make(make(TinyVLA(action_dim=2, chunk_size=4, backbone=BACKBONE)))
    again = load_policy(save_policy(tmp_path / "policy", policy))
    found, expected = (p(seen())["action_chunk"] for p in (again, policy))
    assert torch.equal(found, expected)


def test_a_damaged_folder_is_refused(tmp_path):
    base = TinyVLA(action_dim=2, chunk_size=4, backbone=BACKBONE)
    folder = save_policy(tmp_path / "policy", make(base))
    path = folder / "steering.json"
    text = path.read_text()
    stored = json.loads(text)
    stored["arguments"].pop("encoder")
    path.write_text(json.dumps(stored))
    with pytest.raises(SchemaError, match="the arguments of the policy"):
        load_policy(folder)
    path.write_text(json.dumps({**json.loads(text), "policy": "torch.nn:functional"}))
    with pytest.raises(SchemaError, match=r"an nn\.Module at 'torch\.nn:functional'"):
        load_policy(folder)
    path.write_text(text)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    weights.pop("correction.out.weight")
    torch.save(weights, folder / "weights.pt")
    with pytest.raises(SchemaError, match="the weights of the policy"):
        load_policy(folder)
