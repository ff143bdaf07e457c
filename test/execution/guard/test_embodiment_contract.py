from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_vla.execution import EmbodimentContract
from torchrl_vla.schema import (
    ActionGuardError,
    MetadataError,
    RobotDatasetMetadata,
    VLAError,
)

ARM = EmbodimentContract(
    "arm",
    2,
    action_horizon=3,
    action_low=(-1.0, 0.0),
    action_high=(1.0, 10.0),
    action_names=("turn", "lift"),
)


def chunk(*, batch=(2,), **changes):
    """Every value in the middle, except the ``changes`` at ``e<env>s<step>d<dim>``."""
    out = torch.tensor([0.0, 5.0]).expand(*batch, 3, 2).clone()
    for place, value in changes.items():
        env, step, dim = (int(place[i]) for i in (1, 3, 5))
        out[env, step, dim] = value
    return out


def violations(contract, value, **kwargs):
    with pytest.raises(ActionGuardError, match="violation") as caught:
        contract.check(value, **kwargs)
    lines = str(caught.value).splitlines()
    assert lines[-1].startswith("No action was sent: the robot goes on with its last")
    return [line.removeprefix("  - ") for line in lines[1:-1]]


@pytest.mark.parametrize("batch", [(), (2,), (2, 4), (0,)])
def test_a_legal_chunk_comes_back_as_the_same_tensor(batch):
    value = chunk(batch=batch)
    assert ARM.check(value, embodiment_tag="arm") is value


def test_values_at_the_limits_are_legal_in_the_chunk_s_own_dtype():
    contract = EmbodimentContract("arm", 1, action_low=(-0.1,), action_high=(0.7,))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value = torch.tensor([[-0.1], [0.7]], dtype=dtype)
        assert contract.check(value) is value


def test_every_bad_value_is_listed_with_its_place_and_its_limits():
    value = chunk(e0s1d0=1.5, e1s2d1=-0.25)
    assert violations(ARM, value) == [
        "expected -1.0 .. 1.0 at env index 0, step 1, dimension 0 (turn), got 1.5",
        "expected 0.0 .. 10.0 at env index 1, step 2, dimension 1 (lift), got -0.25",
    ]


def test_a_chunk_without_environments_names_steps_alone():
    value = chunk(batch=())
    value[1, 0] = 2.0
    assert violations(ARM, value) == [
        "expected -1.0 .. 1.0 at step 1, dimension 0 (turn), got 2"
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_values_are_refused_with_and_without_limits(value):
    expected = (
        f"expected a finite value at env index 1, step 0, dimension 1{{}}, got {value}"
    )
    bad = chunk(e1s0d1=value)
    assert violations(ARM, bad) == [expected.format(" (lift)")]
    assert violations(EmbodimentContract("arm", 2), bad) == [expected.format("")]


def test_tag_shape_and_values_are_refused_in_one_error():
    value = torch.full((2, 4, 3), torch.nan)
    found = violations(ARM, value, embodiment_tag="leg")
    assert found[:4] == [
        "expected embodiment_tag 'arm', got 'leg'",
        "expected horizon H = 3, got 4",
        "expected action dimension A = 2, got 3",
        "expected finite values, got nan at [0, 0, 0]",
    ]
    assert len(found) == 3 + 24


def test_a_long_list_of_bad_values_ends_with_their_number():
    value = torch.full((20, 3, 2), 99.0)
    found = violations(ARM, value)
    assert len(found) == 33
    assert found[-1] == "and 88 more values"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[0.0, 5.0]], "expected a tensor [*B, H, A], got list"),
        (torch.zeros(3, 2, dtype=torch.int64), "expected floats, got torch.int64"),
        (torch.zeros(2), "expected a chunk [*B, H, A], got [2]"),
        (torch.zeros(1, 1, 2), "expected horizon H = 3, got 1"),
        (torch.zeros(3, 1), "expected action dimension A = 2, got 1"),
    ],
)
def test_what_is_no_chunk_of_the_embodiment_is_refused(value, expected):
    assert expected in violations(ARM, value)


def test_without_a_horizon_any_length_but_none_passes():
    contract = EmbodimentContract("arm", 2)
    for length in (1, 50):
        contract.check(torch.zeros(length, 2))
    assert violations(contract, torch.zeros(4, 0, 2)) == [
        "expected horizon H = >= 1, got 0"
    ]


def test_one_number_is_read_back_from_the_device():
    read = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(func)
            return func(*args, **(kwargs or {}))

    for contract in (ARM, EmbodimentContract("arm", 2)):
        read.clear()
        with Count():
            contract.check(chunk())
        assert len(read) == 1


def test_gradients_go_through():
    value = chunk().requires_grad_()
    ARM.check(value).sum().backward()
    assert (value.grad == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(-3, 13, width=32) | st.just(float("nan")), min_size=12, max_size=12
    )
)
def test_a_chunk_passes_if_and_only_if_each_of_its_values_is_legal(values):
    value = torch.tensor(values).reshape(2, 3, 2)
    legal = [
        low <= number <= high
        for env in value.tolist()
        for step in env
        for number, low, high in zip(step, ARM.action_low, ARM.action_high)
    ]
    before = value.clone()
    if all(legal):
        ARM.check(value)
    else:
        assert len(violations(ARM, value)) == legal.count(False)
    assert torch.equal(value.nan_to_num(99), before.nan_to_num(99))


def test_the_error_is_a_library_error_and_a_value_error():
    assert issubclass(ActionGuardError, VLAError)
    assert issubclass(ActionGuardError, ValueError)


def test_metadata_of_an_environment_makes_a_contract():
    metadata = RobotDatasetMetadata(
        "cell-7",
        embodiment_id="arm",
        action_names=("turn", "lift"),
        action_units=("rad", "mm"),
        action_low=(-1.0, 0.0),
        action_high=(1.0, 10.0),
        control_frequency_hz=20.0,
    )
    contract = EmbodimentContract.from_metadata(metadata, horizon=3)
    assert contract.to_dict() == {
        "embodiment_tag": "arm",
        "action_dim": 2,
        "action_horizon": 3,
        "action_low": [-1.0, 0.0],
        "action_high": [1.0, 10.0],
        "action_names": ["turn", "lift"],
        "metadata": {
            "dataset_id": "cell-7",
            "action_units": ["rad", "mm"],
            "control_frequency_hz": 20.0,
        },
    }


def test_metadata_without_a_size_makes_no_contract():
    with pytest.raises(MetadataError, match="'action_dim', got 'cell-7' without"):
        EmbodimentContract.from_metadata(RobotDatasetMetadata("cell-7"))


def test_the_run_record_is_json_and_keeps_no_secret():
    contract = EmbodimentContract(
        "arm",
        2,
        metadata={
            "controller": "host",
            "Robot_Password": "hunter2",
            "links": [{"host": "cell-7", "api_key": "abc"}],
        },
    )
    record = json.loads(json.dumps(contract.to_dict()))
    assert record["metadata"] == {
        "controller": "host",
        "Robot_Password": "<withheld>",
        "links": [{"host": "cell-7", "api_key": "<withheld>"}],
    }


def test_the_record_does_not_change_with_what_it_was_made_from():
    about = {"units": ["m"]}
    contract = EmbodimentContract("arm", 1, metadata=about)
    about["units"].append("rad")
    assert contract.to_dict()["metadata"] == {"units": ["m"]}


def test_a_contract_that_has_been_used_can_be_sent_to_another_process():
    ARM.check(chunk())
    again = pickle.loads(pickle.dumps(ARM))
    assert again == ARM
    assert hash(again) == hash(ARM)
    again.check(chunk())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embodiment_tag": " "}, "a name at 'embodiment_tag', got ' '"),
        ({"action_low": (0, 0)}, "both of 'action_low' and 'action_high' or none"),
        (
            {"action_low": (0,), "action_high": (1, 1)},
            "action_dim=2 values at 'action_low', got 1",
        ),
        (
            {"action_low": (0, 1), "action_high": (1, 1)},
            r"action_low < action_high.*dimensions \[1\]",
        ),
        (
            {"action_low": (0, 0), "action_high": (1, float("inf"))},
            r"finite action_low < action_high.*dimensions \[1\]",
        ),
        ({"action_names": ("turn",)}, "action_dim=2 values at 'action_names', got 1"),
        ({"metadata": {"pose": (1, 2)}}, r"JSON-native .*\{'pose': \(1, 2\)\}"),
        ({"metadata": {"rate": float("nan")}}, "JSON-native .*nan"),
        ({"metadata": {3: "x"}}, "JSON-native"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(kwargs, message):
    with pytest.raises(MetadataError, match=message):
        EmbodimentContract(**{"embodiment_tag": "arm", "action_dim": 2, **kwargs})


@pytest.mark.parametrize("name", ["action_dim", "action_horizon"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"positive int at argument '{name}', got 0"):
        EmbodimentContract(**{"embodiment_tag": "arm", "action_dim": 2, name: 0})
