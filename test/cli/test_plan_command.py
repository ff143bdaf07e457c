from __future__ import annotations

import json

from torchrl_vla.cli.main import main


def test_it_prints_steps_memory_usual_length_and_bottleneck(tmp_path, capsys):
    summary = {
        "total_update_s": {"median": 0.1},
        "dataloading_s": {"median": 0.2},
    }
    (tmp_path / "step_timing_summary.json").write_text(json.dumps(summary))
    options = ["--frames", "45000", "--batch-size", "8", "--epochs", "5"]
    options += ["--policy", "act", "--parameters", "1000000000", "--bf16"]
    assert main(["plan", *options, "--profile", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "28125 steps of 8 frames: 5.00 epochs of 5625 steps"
    assert lines[1] == "a first training of act: 30000 to 80000 steps at 8 to 16"
    # A billion weights, gradients and two moments of two bytes each: 7.45 GB.
    assert lines[2] == "7.5 GB without activations: 16 GB"
    assert lines[3].startswith("bound by data: Fetching a batch takes 2.0 updates")
    # 28,125 steps of 0.3 s.
    assert lines[4] == "28125 steps take 2.34 hours at the profiled speed"


def test_what_it_cannot_plan_it_refuses(tmp_path, capsys):
    frames = ["plan", "--frames", "10"]
    assert main([*frames, "--policy", "x"]) == 1
    assert "--policy: expected one of ['act', " in capsys.readouterr().err
    assert main([*frames, "--profile", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "step_timing_summary.json', got nothing. Pass the folder that" in error
    assert main([*frames, "--epochs", "1", "--steps", "1"]) == 1
    assert "either epochs or steps" in capsys.readouterr().err
