from __future__ import annotations

import json

from torchrl_vla.cli.main import main
from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv


def test_inspect_prints_and_writes_and_its_exit_status_is_for_ci(tmp_path, capsys):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path / "reach"
    data = collect(env, env.make_expert(), 4, folder=folder, progress=False)
    outputs = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert main(["inspect", str(folder), *outputs]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"demonstration dataset: {folder}\n")
    assert "no problem was found" in out
    assert json.loads((tmp_path / "a.json").read_text())["exit_code"] == 0
    assert "<h2>Sample frames</h2>" in (tmp_path / "a.html").read_text()

    frames = data.frames.clone()
    frames["action"][3, 0] = float("inf")
    bad = type(data)(frames, data.metadata, data.instructions)
    assert main(["inspect", str(bad.to_folder(tmp_path / "bad"))]) == 1
    assert "problem: 'action' row 3 (episode 0, frame 3)" in capsys.readouterr().out

    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "got nothing at" in capsys.readouterr().out
