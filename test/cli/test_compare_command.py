from __future__ import annotations

import json

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.evaluation import Comparison, EpisodeRecord, EvaluationResult


def write(path, outcomes, first=0, **provenance):
    records = [
        EpisodeRecord(seed, "push", bool(success), 0.0, 5)
        for seed, success in enumerate(outcomes, first)
    ]
    path.parent.mkdir(exist_ok=True)
    about = {"environment": {"class": "TabletopEnv"}, **provenance}
    path.write_text(EvaluationResult(records, about).to_json())
    return str(path)


@pytest.fixture
def files(tmp_path):
    good, bad = [1] * 19 + [0], [1] * 8 + [0] * 12
    return write(tmp_path / "after.json", good), write(tmp_path / "before.json", bad)


def test_compare_prints_the_table_and_ends_with_the_verdict(files, capsys):
    assert main(["compare", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a (after): success 95.0 %")
    assert lines[3].split()[-5:] == ["8", "11", "0", "1", "(all)"]
    assert lines[-1].startswith("after is better than before by 55.0 points (95 % ")
    # 2 / 2**11
    assert "McNemar's exact p = 0.00098; 20 paired episodes" in lines[-1]


def test_compare_writes_all_it_knows(files, tmp_path):
    out = tmp_path / "comparison.json"
    assert main(["compare", *files, "--json", str(out), "--confidence", "0.9"]) == 0
    comparison = Comparison.from_json(out)
    assert comparison.names == ("after", "before")
    assert comparison.confidence == 0.9
    assert comparison.b == EvaluationResult.from_json(tmp_path / "before.json")


def test_files_of_the_same_name_go_by_their_folders(tmp_path, capsys):
    one = write(tmp_path / "one" / "result.json", [0] * 9)
    two = write(tmp_path / "two" / "result.json", [1] * 9)
    assert main(["compare", one, two]) == 0
    assert "\ntwo/result is better than one/result by 100" in capsys.readouterr().out
    assert main(["compare", one, one]) == 0
    assert "a (result): success" in capsys.readouterr().out


def test_other_seeds_are_an_error_that_names_the_way_out(files, tmp_path, capsys):
    other = write(tmp_path / "other.json", [0, 1, 0, 0], first=18)
    assert main(["compare", files[0], other]) == 1
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla: compare: expected the same seeds, got 2 shared")
    assert "--unpaired" in err
    assert main(["compare", files[0], other, "--unpaired"]) == 0
    assert "Fisher's exact" in capsys.readouterr().out


def test_a_file_written_before_provenance_was_is_still_compared(
    files, tmp_path, capsys
):
    payload = json.loads((tmp_path / "before.json").read_text())
    payload["provenance"] = {"seed": 0, "deterministic": True, "versions": {}}
    (tmp_path / "before.json").write_text(json.dumps(payload))
    assert main(["compare", *files]) == 0
    assert "note: before does not say which environment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "FileNotFoundError"),
        ("no json", "expected JSON in "),
        ('{"names": ["a", "b"]}', "expected 'episodes' in "),
        ("[1]", "expected an object in "),
        ('{"episodes": []}', "expected at least one episode"),
    ],
)
def test_a_file_that_is_no_evaluation_is_one_message(
    files, tmp_path, capsys, content, found
):
    path = tmp_path / "odd.json"
    if content is not None:
        path.write_text(content)
    assert main(["compare", files[0], str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla: compare: expected a file that `torchrl-vla eva")
    assert found in err
    assert err.count("\n") == 1


def test_a_confidence_in_percent_is_refused(files, capsys):
    assert main(["compare", *files, "--confidence", "95"]) == 1
    assert "--confidence: expected a number in (0, 1), got 95.0" in (
        capsys.readouterr().err
    )


def test_the_gate_fails_where_a_task_regressed(files, tmp_path, capsys):
    after, before = files
    assert main(["compare", after, before, "--gate"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "improved"
    out = tmp_path / "gate.json"
    assert main(["compare", before, after, "--gate", "--json", str(out)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "before against after, margin 10 points"
    assert lines[2].split()[:2] == ["regressed", "-55.0"]
    assert lines[-1] == "tasks: 1 regressed"
    assert json.loads(out.read_text())["tasks"]["push"]["verdict"] == "regressed"


def test_too_few_episodes_fail_the_gate_only_where_that_is_asked_for(files, capsys):
    same = ["compare", files[0], files[0], "--gate"]
    assert main(same) == 0
    assert "tasks: 1 underpowered" in capsys.readouterr().out
    assert main([*same, "--fail-on-underpowered"]) == 2
    assert main([*same, "--fail-on-underpowered", "--margin", "0.3"]) == 0
    assert "1 held" in capsys.readouterr().out
