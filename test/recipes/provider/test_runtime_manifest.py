from __future__ import annotations

import json
import shlex

from torchrl_vla.cli.smoke_command import Smoke
from torchrl_vla.policies import LeRobotSettings
from torchrl_vla.recipes import runtime_manifest


def test_every_alias_is_read_from_the_environment():
    variables = runtime_manifest()["environment"]
    for field, name in {"policy": "path", "cache_folder": "cache_folder"}.items():
        for alias in variables[field]["aliases"]:
            settings = LeRobotSettings.from_environment({alias: "/x"})
            assert str(getattr(settings, name)) == "/x"
    for field in ("policy_type", "device", "embodiment_tag"):
        (alias,) = variables[field]["aliases"]
        assert getattr(LeRobotSettings.from_environment({alias: "x"}), field) == "x"
    assert LeRobotSettings.from_environment({}).device == variables["device"]["default"]


def test_the_smoke_command_has_the_options_of_the_command_line():
    words = shlex.split(runtime_manifest()["smoke_command"])
    assert words[:2] == ["torchrl-vla", "smoke"]
    options = [word[2:] for word in words if word.startswith("--")]
    assert set(options) <= set(vars(Smoke()))


def test_it_is_json_and_names_what_the_host_owns():
    manifest = json.loads(json.dumps(runtime_manifest()))
    assert set(manifest["host_owned"]) >= {"translator", "safety", "robot"}
    assert manifest["environment"]["policy"]["required"] is True
