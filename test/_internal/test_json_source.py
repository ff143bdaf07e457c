from __future__ import annotations

import pytest

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.evaluation import Comparison, EvaluationResult
from torchrl_vla.schema import RobotDatasetMetadata


def test_a_text_and_a_file_are_read_alike(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    assert read_json("f", '{"a": [1, 2]}') == read_json("f", path) == {"a": [1, 2]}


@pytest.mark.parametrize("kind", [Comparison, EvaluationResult, RobotDatasetMetadata])
def test_the_name_of_a_file_as_text_is_refused(kind):
    message = (
        rf"{kind.__name__}.from_json: expected JSON, got 'runs/a.json'.*pathlib.Path"
    )
    with pytest.raises(ValueError, match=message):
        kind.from_json("runs/a.json")


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"episodes": [')
    with pytest.raises(ValueError, match=r"got another text in '.*a\.json'\. Was its"):
        EvaluationResult.from_json(path)
