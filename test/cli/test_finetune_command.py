from __future__ import annotations

import dataclasses
import json

import pytest

from torchrl_vla import recipes
from torchrl_vla.cli.main import main
from torchrl_vla.recipes import (
    ALGORITHMS,
    GRPO,
    OFF_POLICY,
    FinetuneSettings,
    RunLog,
    load_checkpoint,
)

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


@pytest.mark.parametrize(
    ("head", "algorithm", "cls"),
    [
        ("regression", "residual", "ResidualPolicy"),
        ("regression", "rlpd", "TinyGaussianVLA"),
        ("flow", "dsrl", "NoiseSpacePolicy"),
        ("flow", "qc", "BestOfN"),
    ],
)
def test_off_policy_algorithms_make_policies_that_are_evaluated(
    dataset, tmp_path, capsys, head, algorithm, cls
):
    policy, folder = tmp_path / "policy", tmp_path / "finetuned"
    assert train(dataset, policy, head) == 0
    paths = ["--policy", str(policy), "--folder", str(folder)]
    options = ["--algorithm", algorithm, "--iterations", "1", "--eval-episodes", "4"]
    options += ["--minibatch-size", "8", "--members", "2", "--hidden", "8"]
    options += ["--updates-per-decision", "0.1"]
    if algorithm != "dsrl":
        options += ["--demonstrations", str(dataset), "--warm-up", "1"]
    assert main(["finetune", *paths, *SMALL, *options]) == 0
    assert "before" in capsys.readouterr().out
    assert type(load_checkpoint(folder / "policy")[0]).__name__ == cls
    record = ["--policy", str(folder / "policy"), "--episodes", "4"]
    assert main(["evaluate", *record, *SMALL]) == 0


def test_noise_of_a_policy_that_is_kept_is_refused(dataset, tmp_path, capsys):
    policy = tmp_path / "policy"
    train(dataset, policy, "regression")
    options = ["--algorithm", "residual", "--initial-std", "0.3"]
    assert finetune(policy, tmp_path / "finetuned", *options) != 0
    assert "expected neither --initial-std of a Gaussian" in capsys.readouterr().err


def test_a_finetuning_is_resumed_and_other_settings_are_refused(
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
        (
            ["--algorithm", "grpo", "--group-size", "3"],
            "expected environments in whole groups of 3, got 8",
        ),
        (["--bc-coeff", "1"], "expected demonstrations and bc_coeff > 0 together"),
        (["--env", "nowhere"], "--env: make_environment: expected one of"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-kl", "0"], "FinetuneSettings: expected target_kl > 0, got 0.0"),
        (["--iterations", "0"], "FinetuneSettings: expected iterations >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(
    capsys, options, message
):
    with pytest.raises(SystemExit, match="2"):
        finetune("policy", "folder", *options)
    err = " ".join(capsys.readouterr().err.split())
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "foreign"),
    [
        (["--group-size", "4"], "--group-size"),
        (["--algorithm", "grpo", "--gamma", "0.9"], "--gamma"),
        (["--algorithm=rloo", "--no-divide-by-std"], "--no-divide-by-std"),
    ],
)
def test_options_of_another_algorithm_are_unknown(capsys, options, foreign):
    with pytest.raises(SystemExit, match="2"):
        finetune("policy", "folder", *options)
    assert f"Unrecognized options: {foreign}" in capsys.readouterr().err


def test_an_unknown_algorithm_gets_a_suggestion(capsys):
    assert finetune("policy", "folder", "--algorithm", "grop") == 1
    err = capsys.readouterr().err
    assert err.endswith(
        "expected one of ['dsrl', 'grpo', 'ppo', 'qc', 'residual', 'rloo', 'rlpd'], "
        "got 'grop'. Did you mean 'grpo'?\n"
    )


def every_option(settings):
    return {field.name for field in dataclasses.fields(settings)} - {"algorithm"}


@pytest.mark.parametrize(("name", "algorithm"), {**ALGORITHMS, **OFF_POLICY}.items())
def test_every_setting_can_be_reached(name, algorithm, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["finetune", "--algorithm", name, "--help"])
    out = capsys.readouterr().out
    for option in every_option(FinetuneSettings) | every_option(algorithm):
        assert f"--{option.replace('_', '-')}" in out


def test_settings_reach_the_library(monkeypatch, dataset, tmp_path):
    train(dataset, tmp_path / "policy", "tokens")
    seen = []
    monkeypatch.setattr(
        recipes, "finetune", lambda *arguments, **options: seen.append(arguments)
    )
    options = ["--clip-epsilon", "0.1", "0.3", "--num-decisions", "5", "--recompute"]
    algorithm = ["--algorithm", "grpo", "--group-size", "2", "--keep", "None"]
    with pytest.raises(AttributeError):  # there is no result to print
        finetune(tmp_path / "policy", tmp_path / "run", *options, *algorithm)
    settings = seen[0][4]
    assert settings.algorithm == GRPO(group_size=2, keep=None)
    assert settings.clip_epsilon == (0.1, 0.3)
    assert (settings.num_decisions, settings.recompute) == (5, True)


def test_a_folder_of_another_policy_is_refused(dataset, tmp_path, capsys):
    first, other = tmp_path / "first", tmp_path / "other"
    train(dataset, first, "tokens")
    paths = ["--dataset", str(dataset), "--folder", str(other), "--head", "tokens"]
    sizes = ["--hidden", "16", "--chunk-size", "4", "--steps", "4", "--batch-size", "8"]
    assert main(["train", *paths, *sizes]) == 0
    assert finetune(first, tmp_path / "run", "--iterations", "1") == 0
    capsys.readouterr()
    assert finetune(other, tmp_path / "run", "--iterations", "1") == 1
    assert "got one with other initial weights" in capsys.readouterr().err
    assert finetune(first, first, "--iterations", "1") == 1
    assert "finetune: expected a new folder" in capsys.readouterr().err


def test_options_of_a_dataset_need_one(tmp_path, capsys):
    paths = ["--policy", str(tmp_path / "policy"), "--folder", str(tmp_path / "run")]
    assert main(["finetune", *paths, "--tolerance-s", "0.1"]) == 1
    expected = "expected --demonstrations beside {'tolerance_s': 0.1}"
    assert expected in capsys.readouterr().err
