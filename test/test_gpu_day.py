"""The GPU day runs on a CPU. What it measures there decides nothing."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with torch.random.fork_rng():
        yield
    for name in ("contest", "gpu_rows", "gpu_day", "reference_fingerprints"):
        sys.modules.pop(name, None)


def rehearse(script, folder, monkeypatch, *arguments):
    out = folder / "rows.json"
    options = ["--rehearse", "--device", "cpu", "--out", str(out), *arguments]
    monkeypatch.setattr(sys, "argv", [script, *options])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    rows = json.loads(out.read_text())
    failed = [
        row
        for row in rows
        if not str(row.get("error", "not run")).startswith("not run")
    ]
    assert failed == []
    return rows


def by_table(rows):
    found = {}
    for row in rows:
        found.setdefault(row["table"], []).append(row)
    return found


@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline:FutureWarning")
def test_on_the_cpu_the_numbers_stage_finds_nothing_to_correct(tmp_path, monkeypatch):
    tables = by_table(rehearse("gpu_numerics.py", tmp_path, monkeypatch))
    audit = tables["log-probability audit"]
    assert [row["head"] for row in audit] == ["gaussian", "tokens", "flow", "diffusion"]
    assert {row["ratio_error"] for row in audit} == {0.0}
    prints = tables["fingerprints"]
    assert all(row["again_equal"] and row["from_cpu"] == 0.0 for row in prints)
    calls = tables["compiled and captured calls"]
    assert {row["way"] for row in calls} == {
        "eager",
        "torch.compile",
        "CudaGraphModule",
    }
    assert max(row.get("relative", 0.0) for row in calls) < 1e-5


@pytest.mark.filterwarnings("ignore:Mismatch dtype between:UserWarning")
@pytest.mark.parametrize("shape", ["smolvla", "pi0"])
def test_ways_to_run_a_vlm_policy_agree(shape, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    arguments = (f"--shape={shape}",)
    tables = by_table(rehearse("gpu_vlm.py", tmp_path, monkeypatch, *arguments))
    ways = {row["way"]: row for row in tables["latency per chunk"]}
    assert ways.pop("CUDA graph")["error"] == "not run: no CUDA device"
    assert len(ways) == 4
    assert {row["difference"] for row in ways.values()} == {0.0}
    steps = [row for row in tables["training step"] if row.get("way") == "ours"]
    assert len(steps) == 2
    assert max(row["difference"] for row in steps) < 1e-6
    assert "compiler" not in tables  # nothing fell back


def test_the_tabletop_stage_counts_steps_of_all_devices(tmp_path, monkeypatch):
    rows = rehearse("gpu_tabletop.py", tmp_path, monkeypatch)
    assert [row["envs"] for row in rows] == [2, 2, 2, 4, 4, 4]
    assert all(row["steps_per_s"] > 0 for row in rows)


def make_day(tmp_path, monkeypatch, scripts):
    import gpu_day

    monkeypatch.setattr(gpu_day, "HERE", tmp_path)
    stages = []
    for name, (seconds, text) in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
        stages.append(gpu_day.Stage(name, seconds, (f"{name}.py",)))
    return gpu_day.Day(tmp_path / "report", "cpu", 5.0, rehearse=False), stages


WRITES_A_ROW = """
import json, sys
(out,) = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--out")]
open(out, "w").write(json.dumps([{"table": "t", "x": 1.5, "why": "a|b"}]))
"""


def test_a_stage_that_fails_or_hangs_stops_no_other(tmp_path, monkeypatch):
    scripts = {
        "hangs": (1.0, WRITES_A_ROW + "import time; time.sleep(60)"),
        "fails": (60.0, "raise SystemExit('no such GPU')"),
        "works": (60.0, WRITES_A_ROW),
    }
    day, stages = make_day(tmp_path, monkeypatch, scripts)
    day.run(stages)
    stored = json.loads((tmp_path / "report/report.json").read_text())
    outcomes = {n: stage["outcome"] for n, stage in stored["stages"].items()}
    assert outcomes["hangs"].startswith("stopped after")
    assert outcomes["fails"] == "exit status 1"
    assert outcomes["works"] == "done"
    row = {"table": "t", "x": 1.5, "why": "a|b"}
    assert stored["rows"] == {"hangs": [row], "fails": [], "works": [row]}
    text = (tmp_path / "report/report.md").read_text()
    assert text.count("| 1.5 | a/b |") == 2
    assert "no such GPU" in text


def test_a_stage_without_its_package_is_not_run_and_says_so(tmp_path, monkeypatch):
    day, (stage,) = make_day(tmp_path, monkeypatch, {"works": (60.0, WRITES_A_ROW)})
    day.run([replace(stage, needs="no_such_package")])
    outcome = day.outcomes["works"]["outcome"]
    assert outcome == "not run: no_such_package is not installed"


def test_a_stage_is_not_begun_after_the_budget(tmp_path, monkeypatch):
    day, stages = make_day(tmp_path, monkeypatch, {"works": (60.0, WRITES_A_ROW)})
    day.end = time.time() - 1
    day.run(stages)
    assert day.outcomes["works"]["outcome"] == "not run: the budget is used up"


def test_what_fails_in_a_stage_is_a_row_and_the_rest_goes_on(tmp_path):
    from gpu_rows import Rows

    rows = Rows(tmp_path / "rows.json")
    with rows.trial("t", way="graph"):
        raise RuntimeError("operation not\npermitted")
    rows.add("t", way="eager", ms=1.0)
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {
            "table": "t",
            "way": "graph",
            "error": "RuntimeError: operation not permitted",
        },
        {"table": "t", "way": "eager", "ms": 1.0},
    ]


def test_an_unknown_stage_is_named():
    command = [sys.executable, str(FOLDER / "gpu_day.py"), "--stages", "lunch"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "lunch" in ran.stderr
    assert "numerics" in ran.stderr
