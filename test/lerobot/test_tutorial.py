from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.lerobot

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("*lerobot*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_tutorial_runs_and_its_claims_hold(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert "largest difference 0.0" in capsys.readouterr().out


def test_there_is_a_tutorial_about_lerobot():
    assert [script.name for script in SCRIPTS] == ["06_lerobot.py"]
