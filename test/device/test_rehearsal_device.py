"""The faults that a GPU shows, shown by the device without hardware."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _only_in_a_rehearsal(device):
    if device.type != "rehearsal":
        pytest.skip("of the rehearsal's device")


def test_two_devices_do_not_meet(device):
    there = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="at least two devices"):
        there + torch.ones(3)
    assert (there + torch.ones(())).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match="at least two devices"):
        torch.stack([there[0], torch.ones(())])


def test_the_host_s_generator_draws_nothing_there(device):
    generator = torch.Generator("cpu")
    with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
        torch.ones(3, device=device).normal_(generator=generator)
    own = torch.Generator(device).manual_seed(3)
    first = torch.randn(2, generator=own, device=device)
    again = torch.randn(2, generator=own.manual_seed(3), device=device)
    assert torch.equal(first, again)


def test_waits_are_counted_by_operator(device):
    from rehearsal_device import host_waits

    numbers = torch.arange(4, device=device)
    with host_waits() as found:
        numbers.add(1).sum()
        assert not found
        numbers.sum().item()
        numbers[numbers > 1]
        numbers.cpu()
    assert [wait.operator for wait in found] == [
        "_local_scalar_dense",
        "nonzero",
        "_to_copy",
    ]


def test_lists_of_the_host_index_and_make_tensors(device):
    numbers = torch.arange(6, device=device).view(2, 3)
    assert numbers[:, [2, 0]].tolist() == [[2, 0], [5, 3]]
    numbers[[1]] = 7
    assert numbers.tolist() == [[0, 1, 2], [7, 7, 7]]
    assert numbers.new_tensor([1.0]).device.type == "rehearsal"


def test_a_module_keeps_its_parameters_when_it_moves():
    layer = torch.nn.Linear(2, 1)
    before = id(layer.weight)
    layer.to("rehearsal")
    assert id(layer.weight) == before
    assert layer.weight.device.type == "rehearsal"


@pytest.mark.cpu_only(reason="to see that it is left out")
def test_left_out():
    raise AssertionError


def test_what_a_test_makes_lies_on_the_device_and_what_the_library_makes_does_not(
    monkeypatch,
):
    import device_lane

    from torchrl_vla.schema import InstructionTable

    monkeypatch.setattr(device_lane.TestsOnDevice, "is_paused", False)
    assert torch.ones(3).device.type == "rehearsal"
    assert torch.nn.Linear(1, 1).weight.device.type == "rehearsal"
    assert InstructionTable(["pick"]).ids.device.type == "cpu"
