from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.schema import MetadataError, SchemaError

ORIGIN = Origin("Reader", "'info.json'", "Fetch it again.")


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"expected x >= 0, got {self.x}.")


class Row(TypedDict):
    number: int
    point: Point | None


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (3.0, int, 3),
        (3, float, 3),
        ("a", str, "a"),
        (False, bool, False),
        (None, int | None, None),
        (["a", 2], list[str | int], ["a", 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        (["a", 1], tuple[str, int], ("a", 1)),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
        ("b", Literal["a", "b"], "b"),
        ({"x": 1.5}, Point, Point(1.5)),
        ({"number": 1, "more": 2}, Row, {"number": 1, "point": None}),
        ({"number": 1, "point": {"x": 1.0}}, Row, {"number": 1, "point": Point(1.0)}),
    ],
)
def test_values_of_the_declared_type_are_returned(value, kind, expected):
    assert typed(value, kind, ORIGIN) == expected
    assert type(typed(value, kind, ORIGIN)) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "expected a whole number in 'info.json', got True"),
        (2.5, int, "expected a whole number in 'info.json', got 2.5"),
        (2**63, int, "expected a whole number"),
        (float("nan"), int, "expected a whole number"),
        (True, float, "expected a number in 'info.json', got True"),
        (10**400, float, "expected a number in"),
        ("1", float, "expected a number in 'info.json', got '1'"),
        (None, str, "expected a text in 'info.json', got None"),
        ({}, list[int], "expected a list in 'info.json', got an object with"),
        ([1, "a"], list[int], r"a whole number at '\[1\]' in 'info.json', got 'a'"),
        ([1], tuple[int, int], "expected a list of 2 in 'info.json', got 1 entries"),
        ([], dict[str, int], "expected an object in 'info.json', got a list of 0"),
        ({1: 2}, dict[str, int], "expected an object"),
        ("c", Literal["a", "b"], r"expected one of \['a', 'b'\] in .* got 'c'"),
        ({"y": 1.0}, Point, r"expected 'x' in 'info.json', got only \['y'\]"),
        ({"x": 1.0, "z": 1.0}, Point, r"the fields \['x', 'y'\] .*also \['z'\]"),
        ({"x": -1.0}, Point, "a Point that is possible .*got expected x >= 0, got -1"),
        ({"point": None}, Row, r"expected 'number' in .* got only \['point'\]"),
        ({"number": 1, "point": {"x": "a"}}, Row, "a number at 'point.x' in .*'a'"),
    ],
)
def test_other_values_are_refused_by_their_key(value, kind, message):
    with pytest.raises(SchemaError, match=message):
        typed(value, kind, ORIGIN)


def test_nested_numbers_become_a_tensor():
    found = typed([[1, 2.5], [3, 4]], torch.Tensor, ORIGIN)
    assert torch.equal(found, torch.tensor([[1, 2.5], [3, 4]], dtype=torch.float64))
    for wrong in ([[1], [2, 3]], [None], ["a"], [10**400], 3.0, {}):
        with pytest.raises(SchemaError, match="expected numbers at 'mean'"):
            typed({"mean": wrong}, dict[str, torch.Tensor], ORIGIN)


def test_the_class_of_the_refusal_is_the_origins():
    origin = Origin("Reader", "'a.json'", "Fetch it again.", MetadataError)
    with pytest.raises(MetadataError, match=r"^Reader: .*\. Fetch it again\.$"):
        typed("a", int, origin)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["number", "point", "x", "a"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_of_the_declared_type_or_refused(value):
    try:
        row = typed(value, Row, ORIGIN)
    except SchemaError:
        return
    assert set(row) == {"number", "point"}
    assert type(row["number"]) is int
    assert row["point"] is None or type(row["point"]) is Point
