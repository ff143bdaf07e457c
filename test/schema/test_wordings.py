from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.schema import (
    InstructionTable,
    SchemaError,
    UnknownInstructionError,
    Wordings,
)

WORDINGS = {"pick": ["grasp", "take", "grab"], "place": ["put down"]}
TABLE = InstructionTable(WORDINGS)


def test_a_number_chooses_the_wording_in_equal_parts():
    wordings = Wordings(WORDINGS)
    ids = TABLE.encode(["pick"] * 6 + ["place"] * 2)
    numbers = torch.tensor([0.0, 0.33, 0.34, 0.66, 0.67, 0.9999, 0.0, 0.9999])
    texts = wordings.table.decode(wordings.draw(ids, numbers))
    assert (
        texts == ["grasp", "grasp", "take", "take", "grab", "grab"] + ["put down"] * 2
    )


@given(number=st.floats(0, 1, exclude_max=True, width=32))
def test_a_wording_is_always_one_of_its_instruction(number):
    wordings = Wordings(WORDINGS)
    ids = TABLE.ids.reshape(2, 1)
    drawn = wordings.draw(ids, torch.full((2, 1), number))
    (first,), (second,) = wordings.table.decode(drawn)
    assert first in wordings.of("pick")
    assert second == "put down"


def test_the_table_holds_the_instructions_and_their_wordings():
    texts = Wordings(WORDINGS).table.texts
    assert sorted(texts) == ["grab", "grasp", "pick", "place", "put down", "take"]


def test_they_are_read_from_a_file(tmp_path):
    path = tmp_path / "wordings.json"
    path.write_text(json.dumps(WORDINGS))
    assert Wordings.from_json(path).of("pick") == ("grasp", "take", "grab")
    path.write_text('{"pick": "grasp"}')
    with pytest.raises(SchemaError, match=r"list.*at 'pick'|'pick'.*list"):
        Wordings.from_json(path)


def test_an_instruction_without_wordings_is_refused_where_it_is_met():
    wordings = Wordings(WORDINGS)
    with pytest.raises(UnknownInstructionError, match=r"unknown ids"):
        wordings.draw(InstructionTable(["open"]).ids, torch.zeros(1))
    with pytest.raises(UnknownInstructionError, match=r"Test: .* none of \['open'\]"):
        wordings.check_covers("Test", ["pick", "open"])


@pytest.mark.parametrize("empty", [{}, {"pick": []}])
def test_wordings_must_be_given(empty):
    with pytest.raises(SchemaError, match="at least one wording"):
        Wordings(empty)


def test_an_empty_text_is_refused():
    with pytest.raises(SchemaError, match="with words, got ' '"):
        Wordings({"pick": [" "]})
