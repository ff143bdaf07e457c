from __future__ import annotations

import sys

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.data import DemonstrationDataset, write_lerobot
from torchrl_vla.envs import TabletopEnv


def test_a_lerobot_dataset_is_trained_on_and_colours_are_part_of_the_task(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where, small = tmp_path / "ours", ["--image-size", "16", "--num-envs", "4"]
    tasks = ["--tasks", "reach-red", "--episodes", "4"]
    assert main(["collect", "--folder", str(where), *tasks, *small]) == 0
    dataset = DemonstrationDataset.from_folder(where)
    assert dataset.instructions.texts == ("reach the red block",)
    write_lerobot(dataset, tmp_path / "lerobot", images="png", progress=False)
    policy = str(tmp_path / "policy")
    budget = ["--steps", "2", "--batch-size", "4", "--hidden", "16"]
    source = ["--dataset", str(tmp_path / "lerobot"), "--folder", policy]
    assert main(["train", *source, *budget, "--chunk-size", "3"]) == 0
    place = ["--policy", policy, "--env", "tabletop/reach-red", "--episodes", "2"]
    assert main(["evaluate", *place, *small]) == 0
    assert "over 2 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["train", "--policy", "act", "--folder", "p"], ("lerobot.policies.factory",)),
        (["evaluate", "--policy", "user/name"], ()),
    ],
)
def test_what_needs_lerobot_says_which_extra_to_install(
    command, names, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("lerobot", *names):
        monkeypatch.setitem(sys.modules, name, None)
    if command[0] == "train":
        collect = ["--folder", "data", "--image-size", "16", "--num-envs", "2"]
        assert main(["collect", *collect, "--episodes", "6"]) == 0
        command = [*command, "--dataset", "data"]
    assert main(command) == 1
    assert "pip install 'torchrl-vla[lerobot]'" in capsys.readouterr().err


def test_a_dataset_of_lerobots_says_which_extra_to_install(
    tmp_path, capsys, monkeypatch
):
    env = TabletopEnv(2, image_size=16)
    about = {"metadata": env.metadata, "instructions": env.instructions}
    rollout, folder = env.rollout(3), str(tmp_path / "lerobot")
    write_lerobot(rollout, folder, **about, images="png", progress=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [n for n in sys.modules if n.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    where = ["--dataset", folder, "--folder", str(tmp_path / "p")]
    assert main(["train", *where]) == 1
    assert "pip install 'torchrl-vla[datasets]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", '{"chunk_size": 2}'], "expected no --config with --policy tiny"),
        (
            ["--policy", "act", "--hidden", "8"],
            "expected no --hidden with --policy act",
        ),
        (
            ["--policy", "act", "--rename-map", '{"a": "b"}'],
            "no --rename-map with --policy act. A new policy has the dataset's cameras",
        ),
        (
            ["--policy", "runs/a", "--chunk-size", "8", "--hidden", "8"],
            "expected no --chunk-size, --hidden with --policy runs/a. Give sizes as",
        ),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options, message, capsys):
    assert main(["train", "--dataset", "d", "--folder", "f", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rename-map", "top"], "--rename-map: expected JSON such as"),
        (["--rename-map", '["top"]'], "--rename-map: expected a JSON object, got"),
        (["--env", "kitchen"], "--env: make_environment: expected one of"),
        (["--env", "tabletop/reach", "--tasks", "push"], "expected tasks in one place"),
        (["--empty-cameras", "top"], "load_executor: expected a checkpoint at"),
    ],
)
def test_a_mistyped_option_is_one_message(options, message, tmp_path, capsys):
    policy = str(tmp_path / "nothing")
    assert main(["evaluate", "--policy", policy, *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla: ")
    assert message in err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_says_what_needs_lerobot(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "extra `lerobot`" in " ".join(capsys.readouterr().out.split())
