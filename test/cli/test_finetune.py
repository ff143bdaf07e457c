from __future__ import annotations

import json

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.recipes import RunLog, load_checkpoint

SMALL = ["--image-size", "16", "--num-envs", "8"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demos"
    main(["collect", "--folder", str(folder), "--episodes", "12", *SMALL])
    return folder


def train(dataset, folder, head):
    paths = ["--dataset", str(dataset), "--folder", str(folder)]
    sizes = ["--hidden", "16", "--chunk-size", "4", "--steps", "3", "--batch-size", "8"]
    return main(["train", *paths, "--head", head, *sizes])


def finetune(policy, folder, *options):
    paths = ["--policy", str(policy), "--folder", str(folder)]
    sizes = ["--eval-episodes", "8", "--minibatch-size", "32", "--epochs", "1"]
    return main(["finetune", *paths, *SMALL, *sizes, *options])


@pytest.mark.parametrize(
    ("head", "algorithm", "cls"),
    [
        ("tokens", ["grpo", "--group-size", "4"], "TinyTokenVLA"),
        ("regression", ["ppo"], "TinyGaussianVLA"),
        ("flow", ["rloo", "--group-size", "2"], "TinyFlowVLA"),
    ],
)
def test_train_and_finetune_make_a_chain(
    dataset, tmp_path, capsys, head, algorithm, cls
):
    policy, folder = tmp_path / "policy", tmp_path / "finetuned"
    assert train(dataset, policy, head) == 0
    options = ["--algorithm", *algorithm, "--iterations", "2"]
    assert finetune(policy, folder, *options) == 0
    out = capsys.readouterr().out
    assert "after" in out
    assert "before" in out
    assert type(load_checkpoint(folder / "policy")[0]).__name__ == cls
    assert len(RunLog.read(folder / "log.csv")) == 2
    assert json.loads((folder / "comparison.json").read_text())
    record = ["--policy", str(folder / "policy"), "--episodes", "4"]
    assert main(["evaluate", *record, *SMALL]) == 0


def test_a_finetuning_is_gone_on_with_and_other_settings_are_refused(
    dataset, tmp_path, capsys
):
    policy, folder = tmp_path / "policy", tmp_path / "finetuned"
    train(dataset, policy, "tokens")
    assert finetune(policy, folder, "--iterations", "1") == 0
    stored = (folder / "log.csv").read_text()
    assert finetune(policy, folder, "--iterations", "1") == 0
    assert (folder / "log.csv").read_text() == stored
    capsys.readouterr()
    assert finetune(policy, folder, "--iterations", "1", "--lr", "1e-5") == 1
    assert "got others (name: (then, now)): {'lr': " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "4"], "expected no --group-size with --algorithm ppo"),
        (
            ["--algorithm", "grpo", "--group-size", "4", "--gamma", "0.9"],
            "expected no --gamma with --algorithm grpo",
        ),
        (["--target-kl", "0"], "expected target_kl > 0, got 0"),
        (
            ["--algorithm", "grpo", "--group-size", "3"],
            "expected rows in whole groups of 3, got 8",
        ),
        (["--bc-coeff", "1"], "expected demonstrations and bc_coeff > 0 together"),
        (["--env", "nowhere"], "--env: make_environment: expected one of"),
        (["--iterations", "0"], "expected iterations >= 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    dataset, tmp_path, capsys, options, message
):
    policy = tmp_path / "policy"
    train(dataset, policy, "tokens")
    assert finetune(policy, tmp_path / "finetuned", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
