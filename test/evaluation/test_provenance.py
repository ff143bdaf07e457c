from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import RewardSum, TransformedEnv

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import (
    describe_environment,
    evaluate,
    hash_folder,
    hash_weights,
    package_versions,
    provenance,
)
from torchrl_vla.execution import PolicyWrapper


def checkpoint(folder):
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "weights.bin").write_bytes(b"\x00\x01" * 700_000)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_hash_is_that_of_the_names_and_bytes_in_order(tmp_path):
    expected = hashlib.sha256()
    for name, data in (
        (b"config.json", b"{}"),
        (b"policy/weights.bin", b"\x00\x01" * 700_000),
    ):
        expected.update(len(name).to_bytes(8, "little") + name)
        expected.update(len(data).to_bytes(8, "little") + data)
    assert hash_folder(checkpoint(tmp_path / "a")) == expected.hexdigest()


def test_where_a_checkpoint_lies_does_not_change_its_hash(tmp_path):
    one, other = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two" / "deep")
    assert hash_folder(one) == hash_folder(str(other))


@pytest.mark.parametrize("change", ["byte", "name", "more", "swap"])
def test_any_other_checkpoint_has_another_hash(tmp_path, change):
    folder = checkpoint(tmp_path / "a")
    before = hash_folder(folder)
    weights, config = folder / "policy" / "weights.bin", folder / "config.json"
    if change == "byte":
        weights.write_bytes(b"\x00\x01" * 699_999 + b"\x00\x02")
    elif change == "name":
        config.rename(folder / "config.yaml")
    elif change == "more":
        (folder / "empty").write_bytes(b"")
    else:
        data = config.read_bytes()
        config.write_bytes(weights.read_bytes())
        weights.write_bytes(data)
    assert hash_folder(folder) != before


def test_a_folder_that_is_not_there_has_no_hash(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hash_folder: expected a folder at"):
        hash_folder(tmp_path / "nothing")


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def test_equal_weights_have_one_hash_and_any_change_another():
    one, other = module(), module()
    assert hash_weights(one) == hash_weights(other)
    with torch.no_grad():
        other[0].weight[0, 0] = torch.nextafter(
            other[0].weight[0, 0], torch.tensor(9.0)
        )
    assert hash_weights(one) != hash_weights(other)
    other = module()
    other[1].num_batches_tracked += 1  # a buffer, without dimensions
    assert hash_weights(one) != hash_weights(other)
    assert hash_weights(module().bfloat16()) != hash_weights(one)


def test_the_same_numbers_in_another_shape_are_another_policy():
    flat, square = torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        square.weight.copy_(flat.weight.view(2, 2))
    assert hash_weights(flat) != hash_weights(square)


def test_versions_are_read_without_importing_anything(monkeypatch):
    installed = {"torchrl-vla": "1", "torch": "2", "lerobot": "0.6"}

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(provenance, "version", version)
    before = set(sys.modules)
    assert package_versions() == {"python": platform.python_version(), **installed}
    assert set(sys.modules) == before


def test_an_environment_is_described_by_what_makes_its_episodes():
    env = TabletopEnv(2, tasks=("reach",), colors=("red", "blue"), image_size=16)
    about = describe_environment(env)
    assert about == {
        "class": "TabletopEnv",
        "robot": "tabletop gripper",
        "instructions": ["reach the red block", "reach the blue block"],
        "max_steps": 40,
    }
    assert json.loads(json.dumps(about)) == about


def test_neither_transforms_nor_the_number_of_environments_make_another_one():
    env = TabletopEnv(2, image_size=16)
    wrapped = TransformedEnv(env, RewardSum())
    more = TabletopEnv(5, image_size=32)
    about = describe_environment(env)
    assert describe_environment(wrapped) == about
    assert describe_environment(more) == about
    assert describe_environment(TabletopEnv(2, max_steps=41)) != about


def test_what_an_environment_does_not_tell_is_left_out():
    env = ToyVLAEnv(action_dim=2, state_dim=4, seed=0)  # without a time limit
    assert "max_steps" not in describe_environment(env)
    assert describe_environment(env)["class"] == "ToyVLAEnv"


def test_the_source_of_a_policys_noise_is_recorded_through_its_executor():
    env = ToyVLAEnv(2, 4, success_steps=2, max_steps=2, batch_size=[1])

    class Still(TensorDictModuleBase):
        in_keys, out_keys = ["observation"], ["action"]

        def forward(self, tensordict):
            action = torch.zeros(*tensordict.batch_size, 2)
            return tensordict.set("action", action)

    policy = Still()
    known = evaluate(env, PolicyWrapper(policy), 1, progress=False).provenance
    assert "noise_source" not in known
    policy.noise_source = "torch"
    known = evaluate(env, PolicyWrapper(policy), 1, progress=False).provenance
    assert known["noise_source"] == "torch"
