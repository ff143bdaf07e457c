"""Options that have no effect are refused, each with what they belong to."""

from __future__ import annotations

import pytest

from torchrl_vla.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--images", "png"], "--images beside --format lerobot alone"),
        (["collect", "--num-workers", "2"], "no num_workers (--num-workers) for 'tab"),
        (
            ["doctor", "--policy", "p", "--tasks", "reach"],
            "--env beside --tasks and --",
        ),
        (["doctor", "--policy", "p", "--image-size", "8"], "--env beside --tasks and"),
        (
            ["collect", "--env", "own_parts:make_env", "--image-size", "8"],
            "make_environment: expected 'own_parts:make_env' to take ['image_size']",
        ),
    ],
)
def test_an_option_without_an_effect_is_refused(arguments, message, tmp_path, capsys):
    place = {"collect": "--folder", "doctor": "--dataset"}[arguments[0]]
    assert main([*arguments, place, str(tmp_path / "data")]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
