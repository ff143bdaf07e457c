from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_vla.policies import LeRobotSettings


def test_every_variable_is_read():
    assert LeRobotSettings.from_environment(
        {
            "LEROBOT_POLICY_PATH": "/data/act",
            "LEROBOT_POLICY_TYPE": "act",
            "LEROBOT_DEVICE": "cuda:1",
            "LEROBOT_CACHE_DIR": "/data/cache",
            "LEROBOT_EMBODIMENT_TAG": "aloha",
        }
    ) == LeRobotSettings(
        path="/data/act",
        policy_type="act",
        device="cuda:1",
        cache_folder=Path("/data/cache"),
        embodiment_tag="aloha",
    )


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_variables_count_as_unset(value):
    names = ("POLICY_PATH", "POLICY", "POLICY_TYPE", "DEVICE", "CACHE_DIR")
    variables = {f"LEROBOT_{name}": value for name in names}
    assert LeRobotSettings.from_environment(variables) == LeRobotSettings()


def test_the_variables_of_the_process_are_read_where_none_are_given(monkeypatch):
    monkeypatch.setenv("LEROBOT_POLICY", "me/act-cube")
    monkeypatch.delenv("LEROBOT_POLICY_PATH", raising=False)
    assert LeRobotSettings.from_environment().path == "me/act-cube"


def test_a_home_folder_is_expanded():
    settings = LeRobotSettings.from_environment({"LEROBOT_CACHE_DIR": "~/cache"})
    assert settings.cache_folder == Path.home() / "cache"


def test_both_names_of_the_path_may_agree():
    variables = {"LEROBOT_POLICY_PATH": "me/act", "LEROBOT_POLICY": "me/act"}
    assert LeRobotSettings.from_environment(variables).path == "me/act"


def test_names_of_the_path_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="agree, got 'me/act' and 'me/pi0'"):
        LeRobotSettings.from_environment(
            {"LEROBOT_POLICY_PATH": "me/act", "LEROBOT_POLICY": "me/pi0"}
        )
