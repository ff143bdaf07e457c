from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NonTensorData, NonTensorStack, TensorDict

from torchrl_vla.schema import (
    InstructionTable,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)
from torchrl_vla.schema import instructions as module

texts = st.lists(
    st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique=True
)


@given(texts)
def test_decode_undoes_encode(items):
    table = InstructionTable()
    assert table.decode(table.encode(items)) == items
    assert table.texts == tuple(items)


@given(texts)
def test_two_tables_that_never_met_agree_on_ids(items):
    forward, backward = InstructionTable(items), InstructionTable(reversed(items))
    assert sorted(forward.ids.tolist()) == sorted(backward.ids.tolist())
    for text in items:
        assert forward.id(text) == backward.id(text)


@given(texts)
def test_json_gives_the_table_back(items):
    table = InstructionTable(items)
    assert InstructionTable.from_json(table.to_json()) == table


def test_an_id_is_the_first_eight_bytes_of_blake2b_without_the_sign_bit():
    # python -c "import hashlib; print(int.from_bytes(hashlib.blake2b(b'pick',
    #   digest_size=8).digest(), 'little') & (2**63 - 1))"
    import hashlib

    digest = hashlib.blake2b(b"pick", digest_size=8).digest()
    expected = sum(byte << (8 * place) for place, byte in enumerate(digest)) % 2**63
    assert InstructionTable(["pick"]).ids.tolist() == [expected]


def test_rows_are_positions_in_texts_for_any_shape():
    table = InstructionTable(["a", "b", "c"])
    ids = table.ids[torch.tensor([[2, 0], [1, 1]])]
    assert table.rows(ids).tolist() == [[2, 0], [1, 1]]
    assert table.decode(ids) == [["c", "a"], ["b", "b"]]
    assert table.decode(ids[0, 0]) == "c"


def test_rows_follow_the_table_as_it_grows():
    table = InstructionTable(["a"])
    table.rows(table.ids)
    new = table.encode("b")
    assert table.rows(new).item() == 1


def test_rows_compile_without_a_graph_break():
    table = InstructionTable(["a", "b"])
    rows = torch.compile(table.rows, fullgraph=True, backend="eager")
    assert rows(table.ids.flip(0)).tolist() == [1, 0]


def test_an_unknown_id_is_refused_with_the_texts_that_are_known():
    table = InstructionTable(["pick", "place"])
    with pytest.raises(
        UnknownInstructionError,
        match=r"expected ids of \['pick', 'place'\], got unknown ids \[3\]",
    ):
        table.rows(torch.tensor([3]))


def test_an_empty_table_knows_no_id():
    with pytest.raises(UnknownInstructionError, match="at least one text"):
        InstructionTable().rows(torch.tensor([3]))


def test_ids_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match=r"expected int64 ids, got torch\.int32"):
        InstructionTable(["a"]).rows(torch.zeros(1, dtype=torch.int32))


def test_an_unknown_text_is_refused_where_nothing_may_be_added():
    with pytest.raises(UnknownInstructionError, match=r"table\.add\(text\)"):
        InstructionTable(["pick"]).id("place")


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_instruction_is_refused(blank):
    with pytest.raises(ValueError, match="expected an instruction with words"):
        InstructionTable([blank])


def test_a_single_text_is_not_taken_for_an_iterable_of_letters():
    with pytest.raises(TypeError, match=r"Pass \['pick'\]"):
        InstructionTable("pick")


def test_a_hash_collision_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda text: 1)
    with pytest.raises(ValueError, match="Reword one of them"):
        InstructionTable(["pick", "place"])


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("pick", ["pick"]),
        (["pick", "place"], ["pick", "place"]),
        (NonTensorData("pick"), ["pick"]),
        (NonTensorData("pick", batch_size=[2]), ["pick", "pick"]),
        (NonTensorStack("pick", "place"), ["pick", "place"]),
    ],
)
def test_text_of_every_form_is_flattened(leaf, expected):
    assert is_text(leaf)
    assert instruction_texts(leaf) == expected


def test_the_batch_shape_of_a_text_leaf_is_kept():
    leaf = TensorDict(
        {"text": NonTensorStack(NonTensorStack("a", "b"), NonTensorStack("b", "a"))},
        [2, 2],
    ).get("text")
    table = InstructionTable(["a", "b"])
    assert table.rows(table.encode(leaf)).tolist() == [[0, 1], [1, 0]]


def test_ids_are_not_text():
    assert not is_text(torch.tensor([1]))
