from __future__ import annotations

import json

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.recipes import runtime_manifest

PARTS = [
    *("--policy", "provider_parts:make_policy"),
    *("--observation", "provider_parts:make_observation"),
    *("--translator", "provider_parts:make_translator"),
]


def test_one_request_is_answered_and_recorded(tmp_path, capsys):
    out = tmp_path / "smoke.json"
    assert main(["smoke", *PARTS, "--device", "cpu", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "provider_parts:make_policy (from_pretrained)" in printed
    assert "actions      [4, 2] in 0." in printed
    metadata = json.loads(out.read_text())
    expected = runtime_manifest()["expected_signal"]["json"]
    assert set(expected) <= set(metadata)
    assert metadata["action_shape"] == [4, 2]


def test_the_next_action_alone(capsys):
    assert main(["smoke", *PARTS, "--mode", "select_action"]) == 0
    assert "actions      [1, 2]" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["policy", "observation", "translator"])
def test_each_part_is_required(option, capsys):
    at = PARTS.index(f"--{option}")
    assert main(["smoke", *PARTS[:at], *PARTS[at + 2 :]]) == 1
    assert f"--{option}: expected one, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("translator", "no_such_module:f", "--translator: expected an importable"),
        ("observation", "provider_parts:nothing", "--observation: expected a function"),
        ("policy", "/no/such/folder", "ActionProvider: expected a policy from"),
        ("policy", "provider_parts:make_nothing", "got OSError: no such checkpoint"),
        ("translator", "provider_parts:make_observation", "EmbodimentActionTranslator"),
    ],
)
def test_a_part_that_is_not_there_is_named(option, value, match, capsys):
    arguments = list(PARTS)
    arguments[PARTS.index(f"--{option}") + 1] = value
    assert main(["smoke", *arguments]) == 1
    assert match in capsys.readouterr().err


def test_the_manifest_is_written_without_loading_anything(tmp_path):
    out = tmp_path / "manifest.json"
    assert main(["smoke", "--manifest", str(out)]) == 0
    assert json.loads(out.read_text()) == runtime_manifest()
