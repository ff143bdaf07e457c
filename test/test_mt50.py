"""The benchmark on MetaWorld MT50 runs end to end, and its table adds up."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_vla.evaluation import EpisodeRecord, EvaluationResult

pytest.importorskip("metaworld")

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def mt50(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import mt50

    yield mt50
    sys.modules.pop("mt50", None)


def result(successes, episodes):
    return EvaluationResult(
        [EpisodeRecord(i, "", i < successes, 0.0, 9) for i in range(episodes)]
    )


def test_the_quick_run_collects_trains_evaluates_and_reports(
    monkeypatch, capsys, tmp_path
):
    script = str(FOLDER / "mt50.py")
    monkeypatch.setattr(
        sys, "argv", [script, "--quick", "--workers", "0", "--folder", str(tmp_path)]
    )
    with torch.random.fork_rng():
        runpy.run_path(script, run_name="__main__")
    report = (tmp_path / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert "| policy | easy | medium | hard | very hard | mean |" in report
    assert "| SmolVLA (2.25B) | 87.1 | 51.8 | 70.0 | 64.0 | 68.2 |" in report
    stored = json.loads((tmp_path / "report.json").read_text())
    tasks = ["drawer-close", "sweep-into", "hand-insert", "shelf-place"]
    assert list(stored["tasks"]) == tasks
    assert stored["demonstrations"] == dict.fromkeys(tasks, 2)
    assert stored["facts"]["optimizer steps"] == 5
    assert all(len(stored["tasks"][task]["episodes"]) == 1 for task in tasks)
    assert (tmp_path / "policy" / "policy").is_dir()


def test_the_mean_weighs_groups_alike_and_its_interval_is_narrower(mt50):
    easy, hard = result(30, 40), result(1, 4)
    mean, low, high = mt50.mean_of_groups([easy, hard])
    assert mean == pytest.approx((0.75 + 0.25) / 2)
    # Squared and added by hand from Wilson's 59.8 to 85.8 and 4.6 to 69.9 %.
    assert low == pytest.approx(0.5 - (0.152**2 + 0.204**2) ** 0.5 / 2, abs=1e-3)
    assert high == pytest.approx(0.5 + (0.108**2 + 0.449**2) ** 0.5 / 2, abs=1e-3)


def test_the_published_means_are_those_of_their_groups(mt50):
    for *groups, mean in mt50.PUBLISHED.values():
        assert sum(groups) / 4 == pytest.approx(mean, abs=0.06)


def test_the_table_has_our_row_under_the_published_ones(mt50):
    rows = mt50.table({"reach": result(9, 10), "push": result(2, 10)}, "ours")
    assert rows[-1].startswith("| ours | 90.0 [59.6, 98.2] |  | 20.0 [5.7, 51.0] |  |")
    assert [row.count("|") for row in rows] == [7] * len(rows)


def test_tasks_take_turns_until_the_time_is_over(mt50):
    settings = mt50.Settings(rounds=3)
    everything = list(mt50.in_turns(["a", "b"], 7, settings, time.time() + 1e6))
    assert everything == [
        ("a", 0, 2),
        ("b", 0, 2),
        ("a", 2, 2),
        ("b", 2, 2),
        ("a", 4, 3),
        ("b", 4, 3),
    ]
    late = list(mt50.in_turns(["a", "b"], 7, settings, time.time() - 1))
    assert late == [("a", 0, 2), ("b", 0, 2)]  # the first round is for all


def test_the_shares_of_the_budget_leave_time_for_the_report(mt50):
    clock = mt50.Clock(10.0)
    ends = [clock.deadline(part) - clock.began for part in mt50.ENDS]
    assert ends == sorted(ends)
    assert ends[-1] <= 0.97 * 600
    clock.began -= 1e6
    assert clock.left("train") == 1.0  # a step at least
