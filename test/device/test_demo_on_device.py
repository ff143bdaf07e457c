"""The demo with environment and learner on the device of ``--device``."""

from __future__ import annotations

import json

import pytest

from torchrl_vla.cli.main import main


@pytest.mark.filterwarnings("ignore:StateScaling")  # few demonstrations hardly move
def test_the_demo_collects_clones_and_improves_on_the_device(tmp_path, capsys, device):
    sizes = ["--demonstrations", "6", "--steps", "2", "--episodes", "2"]
    folder = ["--folder", str(tmp_path), "--image-size", "16", "--iterations", "1"]
    assert main(["demo", "--device", str(device), *folder, *sizes]) == 0
    assert "cloned: success" in capsys.readouterr().out
    assert json.loads((tmp_path / "after.json").read_text())["summary"]["episodes"] == 2
    (head, row) = (tmp_path / "finetuning/log.csv").read_text().splitlines()
    numbers = dict(zip(head.split(","), row.split(","), strict=True))
    assert float(numbers["max_ratio"]) == pytest.approx(1.0, abs=0.5)
