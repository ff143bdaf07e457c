from __future__ import annotations

import pytest
import torch

from torchrl_vla.execution import EmbodimentActionTranslator, EmbodimentContract
from torchrl_vla.schema import ActionGuardError

RADIANS = EmbodimentContract(
    "arm", 2, action_horizon=3, action_low=(-2.0, -2.0), action_high=(2.0, 2.0)
)
DEGREES = EmbodimentContract(
    "arm-degrees", 2, action_low=(-90.0, -90.0), action_high=(90.0, 90.0)
)


def to_degrees(chunk, contract):
    return chunk.rad2deg()


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
    with pytest.raises(ActionGuardError, match=r"-2\.0 \.\. 2\.0 at env .*dimension 0"):
        translator(torch.full((1, 3, 2), 3.0))
    with pytest.raises(ActionGuardError, match="embodiment_tag 'arm', got 'leg'"):
        translator(torch.zeros(1, 3, 2), "leg")


def test_what_the_translator_returns_is_checked_against_the_robot_s_contract():
    translator = EmbodimentActionTranslator(RADIANS, to_degrees, DEGREES)
    chunk = torch.zeros(1, 3, 2)
    chunk[0, 2, 1] = 2.0  # 114.6 degrees
    with pytest.raises(
        ActionGuardError,
        match=r"(?s)'arm-degrees'.* 90\.0 at env index 0, step 2, dimension 1",
    ):
        translator(chunk)


def test_without_a_contract_of_its_own_the_output_must_still_be_finite():
    translator = EmbodimentActionTranslator(RADIANS, lambda chunk, contract: chunk / 0)
    with pytest.raises(ActionGuardError, match=r"(?s)translated.*finite value"):
        translator(torch.ones(1, 3, 2))


@pytest.mark.parametrize(
    ("translate", "message"),
    [
        (
            lambda chunk, contract: chunk[:1],
            r"given, \[2\], .*\n  - \[1\] in \[1, ",
        ),
        (
            lambda chunk, contract: chunk[0],
            r"given, \[2\], .*\n  - \[\] in \[3, ",
        ),
        (
            lambda chunk, contract: chunk.repeat(2, 1, 1),
            r"  - \[4\] in \[4, 3, 2\]",
        ),
        (lambda chunk, contract: chunk[0, 0], r"\[\*B, H', A'\].*\n  - \[2\]"),
        (lambda chunk, contract: chunk.tolist(), r"\[\*B, H', A'\].*\n  - list"),
        (lambda chunk, contract: chunk[..., :0], "action dimension A = 1, got 0"),
        (lambda chunk, contract: chunk[:, :0], "horizon H = >= 1, got 0"),
        (lambda chunk, contract: chunk.long(), "floats, got torch.int64"),
    ],
)
def test_a_translator_that_changes_the_batch_or_returns_no_chunk_is_refused(
    translate, message
):
    with pytest.raises(ActionGuardError, match=message):
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
