from __future__ import annotations

import json

import pytest

from torchrl_vla._internal.json_source import read_json, read_json_lines
from torchrl_vla.evaluation import Comparison, EvaluationResult
from torchrl_vla.schema import MetadataError, RobotDatasetMetadata, SchemaError


def test_a_text_and_a_file_are_read_alike(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    kind = dict[str, list[int]]
    assert read_json("f", '{"a": [1, 2]}', kind) == read_json("f", path, kind)
    assert read_json("f", path, kind) == {"a": [1, 2]}


def test_text_is_utf_8_in_every_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "latin-1")
    path = tmp_path / "a.json"
    path.write_bytes('["Würfel"]'.encode())
    assert read_json("f", path, list[str]) == ["Würfel"]
    path.write_bytes('["Würfel"]'.encode("latin-1"))
    with pytest.raises(
        SchemaError, match=r"f: expected UTF-8 text in '.*a\.json', got"
    ):
        read_json("f", path, list[str])


@pytest.mark.parametrize("kind", [Comparison, EvaluationResult, RobotDatasetMetadata])
def test_the_name_of_a_file_as_text_is_refused(kind):
    message = (
        rf"{kind.__name__}.from_json: expected JSON in the text 'runs/a.json', got "
        r"JSONDecodeError.*pathlib.Path"
    )
    with pytest.raises(ValueError, match=message):
        kind.from_json("runs/a.json")


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"episodes": [')
    with pytest.raises(
        SchemaError, match=r"expected JSON in '.*a\.json', got .*\. Was its writer kill"
    ):
        EvaluationResult.from_json(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "1" * 5000, '"\\ud800"', '"\\udc00\\ud800"', "[NaN", "'a'", ""],
)
def test_whatever_python_raises_at_a_text_becomes_our_error(text):
    with pytest.raises(SchemaError, match=r"f: expected JSON in the text"):
        read_json("f", text, object)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"f: expected a file at .*got nothing"):
        read_json("f", tmp_path / "a.json", object)
    with pytest.raises(SchemaError, match=r"f: expected a file in .*got a folder"):
        read_json("f", tmp_path, object)
    with pytest.raises(SchemaError, match=r"f: expected a file in .*File name too lo"):
        read_json("f", tmp_path / ("a" * 300), object)


def test_a_wrong_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "x"}\n')
    with pytest.raises(
        SchemaError, match=r"a whole number at 'a' in line 3 of '.*a\.jsonl', got 'x'"
    ):
        read_json_lines("f", path, dict[str, int])
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_json_lines("f", path, dict[str, int]) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_names": 5}, "expected a list at 'action_names' in .*got 5"),
        ({"action_low": ["a"]}, r"expected a number at 'action_low\[0\]'"),
        ({"dataset_id": None}, "expected a text at 'dataset_id'"),
        ({"grippers": [{"dim": 0}]}, r"expected 'open' at 'grippers\[0\]' in .* only"),
        ({"speed": 1}, r"expected the fields .*got also \['speed'\]"),
        ({"action_statistics": {"mean": [1.0]}}, "expected 'std' at 'action_stat"),
        ({"action_dim": 10**30}, "expected a whole number at 'action_dim'"),
        ({"action_dim": True}, "expected a whole number at 'action_dim'.*got True"),
    ],
)
def test_metadata_of_another_type_are_named_by_their_key(change, message):
    values = json.loads(RobotDatasetMetadata("d", action_dim=1).to_json()) | change
    with pytest.raises(MetadataError, match=message):
        RobotDatasetMetadata.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"episodes": [{}]}'])
def test_json_of_another_kind_is_no_evaluation(text):
    for kind in (EvaluationResult, Comparison):
        with pytest.raises(SchemaError, match=r"from_json: expected (an object|'\w+')"):
            kind.from_json(text)
