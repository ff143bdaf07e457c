from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    validate_vla_tensordict,
)

TABLE = InstructionTable(["pick", "place"])


def valid() -> TensorDict:
    return TensorDict(
        {
            "observation": {
                "image": {"top": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)},
                "state": torch.zeros(2, 5),
            },
            "language_instruction": TABLE.ids,
            "action": torch.zeros(2, 7),
            "action_chunk": torch.zeros(2, 4, 7),
            "action_is_pad": torch.tensor([[False] * 4, [False, True, True, True]]),
            "action_tokens": torch.zeros(2, 4, 7, dtype=torch.int64),
            "log_probs": torch.zeros(2),
        },
        [2],
    )


def test_ids_and_text_are_both_valid():
    assert validate_vla_tensordict(valid()) == []
    text = valid().set("language_instruction", NonTensorStack("pick", "place"))
    assert validate_vla_tensordict(text) == []


def test_a_time_dimension_is_part_of_the_batch():
    window = torch.stack([valid(), valid()], 1)
    assert window.batch_size == (2, 2)
    assert validate_vla_tensordict(window) == []


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("language_instruction", None, "expected an instruction at"),
        ("language_instruction", NonTensorStack("pick", " "), "with words .* got ' '"),
        ("language_instruction", torch.zeros(2), "text or int64 ids .* torch.float32"),
        ("language_instruction", torch.zeros(2, 1).long(), r"ids \[\*B\] .* \(2, 1\)"),
        (
            ("observation", "environment_state"),
            torch.zeros(2, 3, 4),
            r"\[\*B, E\] at .*environment_state.* got \(2, 3, 4\)",
        ),
        (
            ("observation", "environment_state"),
            torch.tensor([[0.0], [torch.nan]]),
            r"finite values at .*environment_state",
        ),
        (("observation", "image"), torch.zeros(2, 8, 8, 3), r"got HWC \(2, 8, 8, 3\)"),
        (("observation", "image"), torch.zeros(2, 7, 8, 8), "1, 3 or 4 channels"),
        (("observation", "image"), torch.zeros(2, 8, 8), r"images \[\*B, C, h, w\]"),
        (("observation", "image"), torch.zeros(2, 3, 8, 8).int(), "uint8 or float"),
        (("observation", "image"), torch.full((2, 3, 8, 8), 9.0), "divide by 255"),
        (
            ("observation", "image"),
            torch.full((2, 3, 8, 8), float("nan")),
            r"float images in \[0, 1\]",
        ),
        (("observation", "image"), TensorDict({}, [2]), "at least one camera"),
        (("observation", "state"), torch.zeros(2, 5).long(), "expected a float tensor"),
        (("observation", "state"), torch.zeros(2), "with a state dimension"),
        ("action", None, "expected an action"),
        ("action", torch.zeros(2), r"expected \[\*B, A\] with an action dimension"),
        ("action", torch.zeros(2, 1, 7), r"expected \[\*B, A\] at 'action'"),
        (
            "action",
            torch.tensor([[0.0], [float("inf")]]),
            r"non-finite one at \[1, 0\]",
        ),
        ("action_chunk", torch.zeros(2, 7), r"expected \[\*B, H, A\]"),
        ("action_is_pad", torch.zeros(2, 4), "expected bool .* got torch.float32"),
        ("action_is_pad", torch.zeros(2, 3).bool(), r"= \(2, 4\) .* got \(2, 3\)"),
        ("action_is_pad", torch.zeros(2).bool(), r"expected \[\*B, H\]"),
        ("action_is_pad", torch.ones(2, 4).bool(), "the mask may be inverted"),
        ("action_tokens", torch.zeros(2, 4, 7), "expected int64 tokens"),
        ("action_tokens", torch.zeros(2).long(), r"\[\*B, H, A\] or \[\*B, L\]"),
        ("log_probs", torch.full((2,), float("nan")), "finite values at 'log_probs'"),
    ],
)
def test_each_violation_is_named(key, value, line):
    data = valid()
    if value is None:
        # without a chunk or tokens that could stand in for the action
        data = data.exclude(key, "action_chunk", "action_tokens", "action_is_pad")
    else:
        data.set(key, value)
    with pytest.raises(SchemaError, match=line):
        validate_vla_tensordict(data)
    assert len(validate_vla_tensordict(data, raise_on_error=False)) == 1


def test_all_violations_come_in_one_error():
    data = valid().set("action", torch.zeros(2)).set("log_probs", torch.zeros(2).long())
    data.set(("observation", "image"), torch.zeros(2, 8, 8, 3))
    with pytest.raises(SchemaError, match=r"got 3 violation\(s\)") as caught:
        validate_vla_tensordict(data)
    for word in ("HWC", "action dimension", "log_probs"):
        assert word in str(caught.value)


def test_perception_may_be_image_or_state_but_not_neither():
    data = valid().exclude("observation")
    with pytest.raises(SchemaError, match=r"expected an image at .* or a state at"):
        validate_vla_tensordict(data)
    assert validate_vla_tensordict(data, require_perception=False) == []
    data["observation", "environment_state"] = torch.zeros(2, 16)
    assert validate_vla_tensordict(data) == []


def test_a_chunk_stands_in_for_the_action():
    assert validate_vla_tensordict(valid().exclude("action")) == []


def test_metadata_is_held_against_the_data():
    metadata = RobotDatasetMetadata(
        "d", action_dim=6, state_dim=4, cameras=("top", "wrist")
    )
    found = validate_vla_tensordict(valid(), metadata=metadata, raise_on_error=False)
    assert found == [
        "expected cameras ['wrist'] under ('observation', 'image'), got none of them",
        "expected state_dim=4 at ('observation', 'state'), got 5",
        "expected action_dim=6 at 'action', got 7",
        "expected action_dim=6 at 'action_chunk', got 7",
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_tokenized_instructions_are_valid(dtype):
    tokens = valid().set("language_instruction", torch.zeros(2, 8, dtype=dtype))
    assert validate_vla_tensordict(tokens) == []
    window = torch.stack([tokens, tokens], 1)
    assert validate_vla_tensordict(window) == []
    floats = valid().set("language_instruction", torch.zeros(2, 8))
    with pytest.raises(SchemaError, match=r"integer tokens \[\*B, L\] .*float32"):
        validate_vla_tensordict(floats)


WRONG_KINDS = {
    "observation": (torch.zeros(2, 3), r"sub-tensordict at 'observation', .*\(2, 3\)"),
    ("observation", "image"): (
        NonTensorStack("a", "b"),
        r"expected an image at \('observation', 'image'\), got non-tensor data",
    ),
    ("observation", "image", "top"): (
        TensorDict({"left": torch.zeros(2)}, [2]),
        r"image at \('observation', 'image', 'top'\), got a sub-tensordict of",
    ),
    ("observation", "state"): (
        NonTensorStack("a", "b"),
        r"expected a tensor at \('observation', 'state'\), got non-tensor data",
    ),
    "action": (
        TensorDict({"arm": torch.zeros(2, 7)}, [2]),
        r"expected a tensor at 'action', got a sub-tensordict of \['arm'\]",
    ),
    "action_chunk": (NonTensorStack("a", "b"), "expected a tensor at 'action_chunk'"),
    "action_is_pad": (NonTensorStack("a", "b"), "expected a tensor at 'action_is_pad'"),
    "action_tokens": (NonTensorStack("a", "b"), "expected a tensor at 'action_tokens'"),
    "log_probs": (NonTensorStack("a", "b"), "expected a tensor at 'log_probs'"),
    "language_instruction": (
        TensorDict({"ids": torch.zeros(2)}, [2]),
        r"expected text, ids or tokens at .* a sub-tensordict of \['ids'\]",
    ),
}


@pytest.mark.parametrize("key", WRONG_KINDS, ids=str)
def test_an_entry_of_another_kind_is_a_violation_and_no_crash(key):
    value, line = WRONG_KINDS[key]
    data = valid().exclude(key).set(key, value)
    with pytest.raises(SchemaError, match=line) as raised:
        validate_vla_tensordict(data)
    # It hides nothing else that is wrong.
    data["action_chunk"] = torch.zeros(2, 4)
    with pytest.raises(SchemaError, match=r"expected \[\*B, H, A\] at 'action_chunk'"):
        validate_vla_tensordict(data)
    assert "action_chunk" not in str(raised.value) or key == "action_chunk"


def test_a_key_of_ones_own_under_a_leaf_is_a_violation():
    data = valid()
    data["action"] = torch.zeros(2, 7)
    with pytest.raises(SchemaError, match=r"'action', which \('action', 'arm', 'x'\)"):
        validate_vla_tensordict(data, action_key=("action", "arm", "x"))
