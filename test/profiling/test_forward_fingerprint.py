from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling import ForwardFingerprint, fingerprint_forward
from torchrl_vla.profiling.forward_fingerprint import (
    device_time,
    summarize,
    write_fingerprint,
)
from torchrl_vla.profiling.operator_recording import operator_table


class Net(nn.Module):
    """A network with dropout, a batch normalization and a tensordict for an answer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(8, 1)
        self.clones = False

    def forward(self, tensordict):
        hidden = self.norm(self.first(tensordict["x"]))
        if self.clones:
            hidden = hidden.clone()
        value = self.second(self.drop(hidden))
        return TensorDict({"loss_bc": value.square().mean(), "log": {"y": value}})


def batch():
    return TensorDict({"x": torch.linspace(-1, 1, 12).view(4, 3)}, [4])


def hashes(made):
    return made.output_fingerprint, made.operator_fingerprint


def test_the_same_module_has_the_same_fingerprint_twice():
    net = Net()
    assert hashes(fingerprint_forward(net, batch())) == hashes(
        fingerprint_forward(net, batch())
    )


def test_a_moved_weight_changes_the_outputs_alone():
    net = Net()
    before = fingerprint_forward(net, batch())
    with torch.no_grad():
        net.first.weight[0, 0] += 1e-3
    after = fingerprint_forward(net, batch())
    assert after.output_fingerprint != before.output_fingerprint
    assert after.operator_fingerprint == before.operator_fingerprint


def test_one_more_operator_changes_the_operators_alone():
    net = Net()
    before = fingerprint_forward(net, batch())
    net.clones = True
    after = fingerprint_forward(net, batch())
    assert after.output_fingerprint == before.output_fingerprint
    assert after.operator_fingerprint != before.operator_fingerprint
    counts = [
        {entry["key"]: entry["count"] for entry in made.operators}
        for made in (before, after)
    ]
    assert counts[1]["aten::clone"] == counts[0].get("aten::clone", 0) + 1


def test_another_seed_changes_what_dropout_leaves():
    net = Net()
    first, second = (fingerprint_forward(net, batch(), seed=s) for s in (0, 1))
    assert first.output_fingerprint != second.output_fingerprint
    assert first.operator_fingerprint == second.operator_fingerprint


def test_mode_buffers_batch_and_random_numbers_stay_as_they_are():
    net, data = Net(), batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2), np.random.rand(), random.random()
    for training in (True, False):
        net.train(training)
        net.drop.eval()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        made = fingerprint_forward(net, data)
        found = torch.rand(2), np.random.rand(), random.random()
        assert torch.equal(found[0], expected[0])
        assert found[1:] == expected[1:]
        assert net.training is training
        assert net.norm.training is training
        assert not net.drop.training
        assert made.seed == 0
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(data.keys(True, True)) == {"x"}


def test_a_module_that_only_works_in_training_mode_is_called_once_in_it():
    class OnlyTraining(nn.Module):
        calls = 0

        def forward(self, tensordict):
            assert self.training
            self.calls += 1
            return tensordict["x"].sum(), {"kl": 0.5}

    module = OnlyTraining()
    made = fingerprint_forward(module, batch())
    assert module.calls == 1
    assert made.outputs["loss"]["shape"] == []
    assert made.outputs["output_dict"] == {"kl": 0.5}


def test_outputs_are_named_by_their_nested_keys_and_losses_are_summed():
    net = Net().eval()
    made = fingerprint_forward(net, batch())
    assert set(made.outputs["output_dict"]) == {"loss_bc", "log.y"}
    loss = made.outputs["loss"]
    assert loss["sum"] == made.outputs["output_dict"]["loss_bc"]["sum"]
    with torch.no_grad():
        expected = net(batch())["log", "y"]
    found = made.outputs["output_dict"]["log.y"]
    assert found["shape"] == [4, 1]
    assert found["sum"] == pytest.approx(expected.sum().item(), abs=1e-6)
    assert made.reference_batch_size == 4


def test_a_policy_without_a_loss_has_none():
    layer = TensorDictModule(nn.Linear(3, 1), ["x"], ["y"])
    made = fingerprint_forward(layer, batch())
    assert made.outputs["loss"] is None
    assert set(made.outputs["output_dict"]) == {"x", "y"}


def test_values_are_summarized_by_their_kind():
    half = torch.tensor([0.5, 1.5], dtype=torch.bfloat16)
    summary = summarize({"half": half, "list": [1, "a", None, True], "other": 1j})
    assert summary["half"]["dtype"] == "torch.bfloat16"
    assert summary["half"]["mean"] == 1.0
    # The bytes of float32 0.5 and 1.5, little-endian.
    raw = bytes.fromhex("0000003f0000c03f")
    import hashlib

    assert summary["half"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert summary["list"] == [1, "a", None, True]
    assert summary["other"] == "1j"
    empty = summarize(torch.zeros(0, 2))
    assert empty["numel"] == 0
    assert "mean" not in empty


def test_a_fingerprint_is_written_and_read(tmp_path):
    made = write_fingerprint(Net(), batch(), tmp_path)
    file = tmp_path / "deterministic_forward.json"
    again = ForwardFingerprint.from_json(file)
    assert hashes(again) == hashes(made)
    assert again.environment == made.environment
    assert made.environment["torch"] == torch.__version__
    assert made.environment["threads"] == torch.get_num_threads()
    assert "aten::addmm" in (tmp_path / "deterministic_forward_ops.txt").read_text()
    file.write_text('{"seed": 0}')
    with pytest.raises(SchemaError, match=r"expected deterministic_forward.json"):
        ForwardFingerprint.from_json(file)


def test_the_generic_name_of_a_device_time_is_preferred():
    both = SimpleNamespace(self_device_time_total=2.0, self_cuda_time_total=1.0)
    assert device_time(both) == 2.0
    assert device_time(SimpleNamespace(self_cuda_time_total=1.0)) == 1.0


def test_a_table_that_cannot_be_sorted_is_skipped():
    class Averages:
        def table(self, sort_by, row_limit):
            if sort_by.startswith("self_device"):
                raise AttributeError(sort_by)
            return f"by {sort_by}"

    columns = ("self_device_time_total", "self_cuda_time_total")
    assert operator_table(Averages(), columns) == "by self_cuda_time_total"
    assert operator_table(Averages(), columns[:1]) is None
