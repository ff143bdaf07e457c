from __future__ import annotations

import json

import pytest
from fake_profiles import fake_program, make_row

from torchrl_vla.cli import library
from torchrl_vla.cli.main import main
from torchrl_vla.profiling import orchestrator
from torchrl_vla.profiling.profile_cases import ProfileCase


@pytest.fixture
def faked(monkeypatch):
    cases = {name: ProfileCase(name, "tiny") for name in ("first", "failing")}

    def run(cases, folder, mode, **options):
        rows, status = orchestrator.run_profiles(
            cases, folder, mode, program=fake_program, **options
        )
        for row in rows:  # a report needs times
            if row["status"] == "success":
                summary = make_row()["step_timing_summary"]
                row["step_timing_summary"] = summary
        return rows, status

    monkeypatch.setattr(library, "run_profiles", run, raising=False)
    find = lambda names=None: [cases[name] for name in names or cases]  # noqa: E731
    monkeypatch.setattr(library, "find_cases", find, raising=False)


def test_it_prints_the_snapshot_and_exits_with_1_after_a_failure(
    faked, tmp_path, capsys
):
    out = ["--output-dir", str(tmp_path)]
    assert main(["profile", *out, "--cases", "first", "--git-ref", "main"]) == 0
    printed = capsys.readouterr().out
    assert "| first | 4 | 30.0 | 300.0 |" in printed
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "report.csv").exists()
    assert main(["profile", *out]) == 1
    printed = capsys.readouterr().out
    assert "failing failed (3):" in printed
    assert "s3cr3tvalue" not in printed
    assert "failing lacks ['step_timing_summary.json', " in printed
    (path,) = (tmp_path / "failing").glob("*/profiling_row.json")
    assert json.loads(path.read_text())["status"] == "failed"


def test_publishing_needs_an_organization(faked, tmp_path, capsys):
    assert main(["profile", "--output-dir", str(tmp_path), "--publish"]) == 1
    assert "--publish: expected an organization for the repository" in (
        capsys.readouterr().err
    )


def test_an_unknown_case_is_an_error_of_the_command(tmp_path, capsys):
    options = ["--output-dir", str(tmp_path), "--cases", "no-case"]
    assert main(["profile", *options]) == 1
    assert "expected cases of ['tiny-regression'" in capsys.readouterr().err


def test_two_profiles_are_compared_and_a_change_of_numbers_exits_with_1(
    tmp_path, capsys
):
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    rows = (make_row(), make_row(1, 0.008), make_row(2, 0.010, "other"))
    for file, row in zip(files, rows, strict=True):
        file.write_text(json.dumps(row))
    a, b, c = map(str, files)
    assert main(["compare-profiles", a, b]) == 0
    out = capsys.readouterr().out
    assert "faster" in out
    assert "numerics: identical" in out
    assert main(["compare-profiles", a, c]) == 1
    assert "numerics: changed" in capsys.readouterr().out
