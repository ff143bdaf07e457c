"""The benchmark in real time runs, so that it cannot rot. Its times decide nothing."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "real_time_chunking.py"


def test_it_checks_every_index_and_prints_a_row_for_each_executor(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick"])
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        runpy.run_path(str(SCRIPT), run_name="__main__")
    torch.set_num_threads(threads)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [
        "asynchronous, thread",
        "real time, in the step",
        "real time, thread",
    ]
    assert all(re.fullmatch(r"\|[^|]+\|( [\d.]+ \|){7}", row) for row in rows)


def test_the_readme_names_it():
    text = SCRIPT.with_name("README.md").read_text()
    assert f"python benchmarks/{SCRIPT.name}" in text
