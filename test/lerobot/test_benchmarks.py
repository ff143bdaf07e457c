"""The benchmarks whose peer is LeRobot run, so that none rots."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.filterwarnings("ignore:The video decoding and encoding:UserWarning"),
]

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("bench_lerobot*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_and_prints_a_table_of_ratios(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            runpy.run_path(str(FOLDER / script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("contest", None)
    lines = capsys.readouterr().out.splitlines()
    assert any("1 thread" in line for line in lines)
    assert any(re.search(r"( +\d+\.\d+){2,3}$", line) for line in lines)
