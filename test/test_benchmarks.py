"""Every benchmark runs, so that none rots. What it measures decides nothing here."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny_vlms import tiny_vlm_folder

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("bench_*.py"))
WITH_LEROBOT = [script for script in SCRIPTS if "lerobot" in script]


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    sys.modules.pop("contest", None)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s not in WITH_LEROBOT])
def test_a_benchmark_runs_and_prints_a_table_of_ratios(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    title, head, *rows = [line for line in lines if "[torchrl]" not in line]
    assert "1 thread" in title
    assert re.search(r"min,? +median,? +max", head)
    assert len(rows) >= 4
    assert all(re.search(r"( +\d+\.\d\d){3}$", row) for row in rows)


def test_the_learning_curves_run_and_print_their_table(monkeypatch, capsys, tmp_path):
    arguments = ["--quick", "--seeds", "0", "--cases", "tabletop-tokens-grpo"]
    script = "finetuning_curves.py"
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--folder", str(tmp_path)])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    *_, head, _, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| case | seed | before | after |")
    assert re.match(r"\| tabletop-tokens-grpo \| 0 \| \d+ % \| \d+ % \|", row)
    drawn = ["--plot", str(tmp_path / "curves.png"), "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [script, *drawn])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_wordings_run_resume_and_print_their_tables(monkeypatch, capsys, tmp_path):
    script = "wordings.py"
    arguments = ["--quick", "--seeds", "0", "--arms", "bytes", "--folds", "-1", "0"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--folder", str(tmp_path)])
    for _ in range(2):  # the second run finds everything done
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        assert len(lines) == 5 + 6
    assert re.search(r"\| `bytes` \| 1 \| \d+ \[", capsys.readouterr().out)


def test_a_vision_language_policy_is_cloned_and_improved(monkeypatch, tmp_path):
    script, folder = "vlm_tabletop.py", str(tmp_path / "run")
    model = str(tiny_vlm_folder("causal"))
    options = ["--folder", folder, "--device", "cpu", "--vlm.backbone", model]
    monkeypatch.setattr(sys, "argv", [script, "--quick", *options])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for name in ("clone", "shuffled instruction", "blank images"):
        low, high = report[name]["interval"]
        assert 0 <= low <= report[name]["success"] <= high <= 1
    assert "6 paired episodes" in report["PPO"]["comparison"]
    assert report["weights that are trained"] < report["weights"]


def test_the_readme_names_every_benchmark():
    text = (FOLDER / "README.md").read_text()
    assert [
        script for script in SCRIPTS if f"python benchmarks/{script}" not in text
    ] == []


def test_contestants_that_disagree_are_not_compared():
    import contest

    same = {"ours": torch.tensor([1, 2]), "peer": torch.tensor([1, 2])}
    contest.check_equal("encode", same)
    with pytest.raises(AssertionError, match="encode: truth and ours disagree"):
        contest.check_equal("encode", same | {"truth": torch.tensor([1, 3])})


def test_contestants_take_turns_after_three_rounds_of_warming_up():
    import contest

    calls = []
    times = contest.time_in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, repeats=2
    )
    assert calls == ["a", "a", "b", "b"] * 5
    assert [len(times["a"]), len(times["b"])] == [2, 2]


def test_peak_memory_counts_what_is_held_at_once():
    import contest

    def hold_two_of_three() -> torch.Tensor:
        first = torch.zeros(1000)
        first = first + 1
        return first + 1

    # Two of three tensors of 4000 bytes, and small change for the constants.
    assert 8000 <= contest.peak_bytes(hold_two_of_three) < 8100


def test_a_row_shows_the_ratios_round_by_round(capsys):
    import contest

    contest.print_rows("x", {"base": [1.0, 2.0, 4.0], "ours": [2.0, 1.0, 4.0]}, "base")
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["x", "base", "2.000", "1.00", "1.00", "1.00"]
    assert rows[1].split() == ["x", "ours", "2.000", "0.50", "1.00", "2.00"]


def test_a_full_run_appends_its_ratios_to_the_history(tmp_path, monkeypatch, capsys):
    import contest

    registered = []
    monkeypatch.setattr(contest.atexit, "register", lambda *a: registered.append(a))
    history = tmp_path / "history.jsonl"
    monkeypatch.setattr(sys, "argv", ["bench_x.py", "--history", str(history)])
    for median in (1.0, 3.0):
        assert contest.read_quick("what") is False
        contest.print_rows("x", {"base": [1.0] * 3, "ours": [0.5, median, 4.0]}, "base")
        write, *arguments = registered.pop()
        write(*arguments)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["script"] for line in lines] == ["bench_x", "bench_x"]
    assert lines[1]["ratios"]["x: ours"] == {
        **{"baseline": "base", "min": 0.5, "median": 3.0, "max": 4.0, "rounds": 3}
    }
    assert {"date", "commit", "machine", "versions", "threads"} <= lines[0].keys()
    page = tmp_path / "report.html"
    arguments = ["report.py", "--history", str(history), "--out", str(page)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(FOLDER / "report.py"), run_name="__main__")
    assert "2 runs, 2 rows" in capsys.readouterr().out
    assert "[0.50, 4.00]" in page.read_text()
    assert page.read_text().count("<polyline") == 2


def test_a_quick_run_leaves_no_history(tmp_path, monkeypatch):
    import contest

    registered = []
    monkeypatch.setattr(contest.atexit, "register", lambda *a: registered.append(a))
    monkeypatch.setattr(sys, "argv", ["bench_x.py", "--quick"])
    assert contest.read_quick("what") is True
    assert registered == []


def test_every_script_gives_its_ratios_to_the_history():
    texts = {script: (FOLDER / script).read_text() for script in SCRIPTS}
    assert [
        script
        for script, text in texts.items()
        if "print_rows(" not in text and "record_ratios(" not in text
    ] == []


def test_the_sample_efficiency_runs_resumes_and_prints_its_table(
    monkeypatch, capsys, tmp_path
):
    script = "sample_efficiency.py"
    arguments = ["--quick", "--seeds", "0", "--tasks", "tabletop", "reach"]
    arguments += ["--methods", "dsrl", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    for _ in range(2):  # the second run finds everything done
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        *_, head, _, row = capsys.readouterr().out.splitlines()
        assert head.startswith("| task | method | seed | before | after |")
        assert re.match(r"\| tabletop \| dsrl \| 0 \| \d+ % \| \d+ % \|", row)
    assert len(list((tmp_path / "clones").iterdir())) == 1  # reach has none of a flow
