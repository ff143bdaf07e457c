"""The benchmarks on LIBERO run end to end, and go on where they were cut off."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from torchrl_vla.evaluation import EpisodeRecord, EvaluationResult

pytest.importorskip("libero")
pytestmark = [pytest.mark.libero, pytest.mark.xdist_group("libero")]

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with torch.random.fork_rng():
        yield
    for name in ("libero_object", "libero_pro"):
        sys.modules.pop(name, None)


def run(script, folder, monkeypatch, *arguments):
    arguments = [script, "--quick", "--folder", str(folder), *arguments]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_the_quick_run_measures_every_arm_and_a_second_one_nothing(
    monkeypatch, capsys, tmp_path
):
    run("libero_object.py", tmp_path, monkeypatch)
    assert "task 6: 1 of" in capsys.readouterr().out
    report = (tmp_path / "report.md").read_text()
    arms = ["shuffled instruction", "no instruction", "blank images", "no state"]
    arms.append("open loop")
    assert report.startswith(f"| task | policy | {' | '.join(arms)} |")
    for arm in arms:
        assert f"- policy minus {arm}: 0.0 points [-65.8, 65.8]" in report
    stored = EvaluationResult.from_json(tmp_path / "results" / "policy" / "6.json")
    assert [episode.length for episode in stored.episodes] == [20]
    assert "butter" in stored.episodes[0].instruction
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(times) > 12
    run("libero_object.py", tmp_path, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    run("libero_pro.py", tmp_path, monkeypatch, "--variants", "swap")
    report = (tmp_path / "report_pro.md").read_text()
    assert report.startswith("| task | policy | _swap |")
    assert "- policy minus _swap: 0.0 points" in report


def result(text, *successes):
    return EvaluationResult(
        [EpisodeRecord(i, text, bool(ok), 0.0, 9) for i, ok in enumerate(successes)]
    )


def test_the_table_pairs_the_episodes_that_both_ran():
    import libero_object

    lines = libero_object.table_of(
        {
            "policy": [result("soup", 1, 1, 0), result("milk", 0, 1, 1)],
            "blind": [result("soup", 0, 1), result("milk", 0, 0)],
        }
    )
    assert lines[2:4] == [
        "| soup | 66.7 [20.8, 93.9] | 50.0 [9.5, 90.5] |",
        "| milk | 66.7 [20.8, 93.9] | 0.0 [0.0, 65.8] |",
    ]
    assert lines[4].startswith("| **all** | 66.7 [30.0, 90.3] | 25.0 [4.6, 69.9] |")
    # Of the four that both ran, the policy solves three and the blind one of these.
    assert lines[6].startswith("- policy minus blind: 50.0 points [")
    assert lines[6].endswith("McNemar's exact p 0.5, 4 pairs")
