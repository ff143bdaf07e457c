from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.policies import (
    ActionBoundary,
    BackboneConfig,
    EmbodimentActionTranslator,
    EmbodimentContract,
    TinyVLA,
)
from torchrl_vla.schema import ActionBoundaryError, InstructionTable, MissingKeyError
from torchrl_vla.testing import check_policy

RADIANS = EmbodimentContract(
    "arm", 2, action_horizon=3, action_low=(-2.0, -2.0), action_high=(2.0, 2.0)
)
DEGREES = EmbodimentContract(
    "arm-degrees", 2, action_low=(-90.0, -90.0), action_high=(90.0, 90.0)
)


def to_degrees(chunk, contract):
    return chunk.rad2deg()


def make_policy(key="action_chunk"):
    """Say the state, in radians, three times."""
    return TensorDictModule(
        lambda state: state.unsqueeze(-2).expand(*state.shape[:-1], 3, 2),
        [("observation", "state")],
        [key],
    )


def observe(*rows):
    state = torch.tensor(rows)
    return TensorDict({"observation": {"state": state}}, state.shape[:-1])


def test_the_translator_gets_the_chunk_and_its_contract():
    seen = []

    def translate(chunk, contract):
        seen.append((chunk, contract))
        return chunk[..., :1, [1, 0, 0]]

    chunk = torch.tensor([[[0.0, 1.0], [2.0, 2.0], [0.0, 0.0]]])
    actions = EmbodimentActionTranslator(RADIANS, translate)(chunk, "arm")
    assert actions.tolist() == [[[1.0, 0.0, 0.0]]]
    assert seen[0][0] is chunk
    assert seen[0][1] is RADIANS


def test_a_chunk_outside_the_contract_is_never_translated():
    def translate(chunk, contract):
        raise AssertionError("a refused chunk was translated")

    translator = EmbodimentActionTranslator(RADIANS, translate)
    with pytest.raises(ActionBoundaryError, match=r"dimension 0 in -2\.0 \.\. 2\.0"):
        translator(torch.full((1, 3, 2), 3.0))
    with pytest.raises(ActionBoundaryError, match="embodiment_tag 'arm', got 'leg'"):
        translator(torch.zeros(1, 3, 2), "leg")


def test_what_the_translator_returns_is_checked_against_the_robot_s_contract():
    translator = EmbodimentActionTranslator(RADIANS, to_degrees, DEGREES)
    chunk = torch.zeros(1, 3, 2)
    chunk[0, 2, 1] = 2.0  # 114.6 degrees
    with pytest.raises(
        ActionBoundaryError,
        match=r"(?s)'arm-degrees'.*dimension 1 in -90\.0 \.\. 90\.0 at row 0, step 2",
    ):
        translator(chunk)


def test_without_a_contract_of_its_own_the_output_must_still_be_finite():
    translator = EmbodimentActionTranslator(RADIANS, lambda chunk, contract: chunk / 0)
    with pytest.raises(ActionBoundaryError, match=r"(?s)translated.*finite value"):
        translator(torch.ones(1, 3, 2))


@pytest.mark.parametrize(
    ("translate", "message"),
    [
        (lambda chunk, contract: chunk[:1], r"given, \[2\], got .*\n  - \[1\] rows"),
        (lambda chunk, contract: chunk[0], r"given, \[2\], got .*\n  - \[\] rows"),
        (
            lambda chunk, contract: chunk.repeat(2, 1, 1),
            r"  - \[4\] rows in \[4, 3, 2\]",
        ),
        (lambda chunk, contract: chunk[0, 0], r"\[\*B, H', A'\].*\n  - \[2\]"),
        (lambda chunk, contract: chunk.tolist(), r"\[\*B, H', A'\].*\n  - list"),
        (lambda chunk, contract: chunk[..., :0], "action dimension A = 1, got 0"),
        (lambda chunk, contract: chunk[:, :0], "horizon H = >= 1, got 0"),
        (lambda chunk, contract: chunk.long(), "floats, got torch.int64"),
    ],
)
def test_a_translator_that_drops_adds_or_reshapes_rows_is_refused(translate, message):
    with pytest.raises(ActionBoundaryError, match=message):
        EmbodimentActionTranslator(RADIANS, translate)(torch.zeros(2, 3, 2))


def test_a_translator_must_be_callable():
    with pytest.raises(TypeError, match="'translate', got EmbodimentContract"):
        EmbodimentActionTranslator(RADIANS, DEGREES)


def test_the_record_of_a_translator_holds_both_contracts():
    record = EmbodimentActionTranslator(RADIANS, to_degrees, DEGREES).to_dict()
    assert record == {"contract": RADIANS.to_dict(), "out_contract": DEGREES.to_dict()}
    assert EmbodimentActionTranslator(RADIANS, to_degrees).to_dict() == {
        "contract": RADIANS.to_dict(),
        "out_contract": None,
    }


def test_a_legal_chunk_passes_the_boundary_unchanged():
    td = observe([1.0, -2.0], [0.5, 0.0])
    free = make_policy()(td.clone())
    guarded = ActionBoundary(make_policy(), RADIANS)
    assert guarded.in_keys == [("observation", "state")]
    assert guarded.out_keys == ["action_chunk"]
    assert guarded(td) is td
    assert (td == free).all()


def test_a_refused_chunk_leaves_the_tensordict_as_it_was():
    td = observe([1.0, 3.0])
    td["action_chunk"] = torch.zeros(1, 3, 2)
    before = td.clone()
    with pytest.raises(ActionBoundaryError, match="row 0, step 0, got 3"):
        ActionBoundary(make_policy(), RADIANS)(td)
    assert (td == before).all()


def test_the_boundary_translates_and_keeps_the_raw_chunk_where_it_is_told_to():
    translator = EmbodimentActionTranslator(RADIANS, to_degrees, DEGREES)
    boundary = ActionBoundary(
        make_policy("plan"),
        translator=translator,
        chunk_key="plan",
        raw_chunk_key="raw",
    )
    td = boundary(observe([torch.pi / 2, 0.0]))
    assert boundary.out_keys == ["plan", "raw"]
    assert td["raw"][0, 0].tolist() == pytest.approx([torch.pi / 2, 0.0])
    assert td["plan"][0, 0].tolist() == pytest.approx([90.0, 0.0])
    assert (boundary.action_dim, boundary.chunk_size) == (2, None)


def test_every_row_s_tag_is_compared():
    boundary = ActionBoundary(make_policy(), RADIANS, tag_key="robot")
    td = observe([1.0, 0.0], [0.0, 0.0])
    td["robot"] = NonTensorStack("arm", "leg")
    with pytest.raises(ActionBoundaryError, match="embodiment_tag 'arm', got 'leg'"):
        boundary(td)
    td["robot"] = NonTensorStack("arm", "arm")
    assert boundary(td)["action_chunk"].shape == (2, 3, 2)
    with pytest.raises(MissingKeyError, match="tag as text at 'robot', got None"):
        boundary(observe([1.0, 0.0]))


def test_a_policy_behind_the_boundary_is_still_a_policy():
    table = InstructionTable(["left", "right"])
    policy = TinyVLA(
        action_dim=2,
        chunk_size=3,
        instructions=table,
        backbone=BackboneConfig(state_dim=2, cameras=(), hidden=16),
    )
    observation = TensorDict(
        {
            "observation": {"state": torch.randn(4, 2)},
            "language_instruction": table.encode(["left", "right"] * 2),
        },
        [4],
    )
    contract = EmbodimentContract("arm", 2)
    boundary = ActionBoundary(policy, contract)
    check_policy(boundary, observation)
    assert (boundary.action_dim, boundary.chunk_size) == (2, 3)
    expected = policy(observation.clone())["action_chunk"]
    chunk = boundary(observation.clone())["action_chunk"]
    assert torch.equal(chunk, expected)
    chunk.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_a_policy_that_writes_no_chunk_has_no_boundary():
    with pytest.raises(MissingKeyError, match=r"'action_chunk', got .* \['plan'\]"):
        ActionBoundary(make_policy("plan"), RADIANS)


def test_contract_and_translator_must_agree():
    translator = EmbodimentActionTranslator(RADIANS, to_degrees)
    for kwargs in ({}, {"contract": DEGREES, "translator": translator}):
        with pytest.raises(ValueError, match="a contract, or a translator with the"):
            ActionBoundary(make_policy(), **kwargs)
