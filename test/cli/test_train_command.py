from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_folders import write_language_model, write_vision_model
from lerobot_folders import edit_info, record, write_folder

from torchrl_vla.cli.main import main
from torchrl_vla.recipes import load_checkpoint
from torchrl_vla.recipes.training_loop import _Loop

SIZES = ["--hidden", "16", "--chunk-size", "4", "--batch-size", "8", "--head", "flow"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demos"
    small = ["--image-size", "16", "--num-envs", "8", "--episodes", "6"]
    assert main(["collect", "--folder", str(folder), *small]) == 0
    return folder


def train(dataset, folder, *options):
    paths = ["--dataset", str(dataset), "--folder", str(folder)]
    return main(["train", *paths, *SIZES, "--steps", "6", *options])


def weights(folder):
    return load_checkpoint(folder)[0].state_dict()


class KilledError(Exception):
    pass


def test_a_killed_training_is_resumed_to_the_same_policy(
    dataset, tmp_path, monkeypatch
):
    assert train(dataset, tmp_path / "whole") == 0
    take_step = _Loop.take_step

    def deadly(self, step):
        if step == 5:
            raise KilledError
        take_step(self, step)

    often = ["--checkpoint-interval", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "take_step", deadly)
        with pytest.raises(KilledError):
            train(dataset, tmp_path / "killed", *often)
    assert (tmp_path / "killed" / "training_state.pt").is_file()
    assert train(dataset, tmp_path / "killed", *often) == 0
    resumed = weights(tmp_path / "killed")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(resumed[name], value), name
    curves = [tmp_path / name / "learning_curve.csv" for name in ("whole", "killed")]
    assert curves[0].read_text() == curves[1].read_text()
    assert not (tmp_path / "killed" / "training_state.pt").exists()


def test_a_trained_policy_and_a_dataset_are_not_overwritten(dataset, tmp_path, capsys):
    folder = tmp_path / "policy"
    assert train(dataset, folder) == 0
    before = weights(folder)
    for taken in (folder, dataset):
        names = sorted(path.name for path in taken.iterdir())
        assert train(dataset, taken, "--seed", "1") == 1
        err = capsys.readouterr().err
        assert "torchrl-vla: train: expected a new folder, an empty one or one" in err
        assert sorted(path.name for path in taken.iterdir()) == names
    assert all(
        torch.equal(before[name], value) for name, value in weights(folder).items()
    )


def test_other_options_do_not_resume(dataset, tmp_path, monkeypatch, capsys):
    def deadly(self, step):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "take_step", deadly)
        with pytest.raises(KilledError):
            train(dataset, tmp_path / "killed")
    assert train(dataset, tmp_path / "killed", "--lr", "0.5") == 1
    assert "{'lr': (0.001, 0.5)}" in capsys.readouterr().err


def test_pretrained_encoders_and_wordings_are_options(
    dataset, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    language = str(write_language_model(tmp_path / "language"))
    vision = str(write_vision_model(tmp_path / "vision"))
    table = json.loads((dataset / "instructions.json").read_text())
    wordings = tmp_path / "wordings.json"
    wordings.write_text(json.dumps({text: [text, text.upper()] for text in table}))
    options = ["--text-encoder", language, "--image-encoder", vision]
    options += ["--image-features", str(tmp_path / "features")]
    options += ["--wordings", str(wordings)]
    assert train(dataset, tmp_path / "policy", *options) == 0
    policy, _ = load_checkpoint(tmp_path / "policy")
    assert (tmp_path / "features" / "origin.json").is_file()
    assert {text.upper() for text in table} <= set(policy.instructions)
    assert policy.backbone.vision.frozen
    arguments = ["--policy", str(tmp_path / "policy"), "--image-size", "16"]
    arguments += ["--num-envs", "2", "--episodes", "2", "--wordings", str(wordings)]
    ablate = ["--ablate", "reworded-instruction"]
    assert main(["evaluate", *arguments, *ablate]) == 0
    assert "b (reworded-instruction)" in capsys.readouterr().out
    assert main(["evaluate", *arguments]) == 1
    assert "--ablate reworded-instruction with --wordings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resize-images", "pad"], "--image-encoder with --resize-images"),
        (["--image-features", "f"], "--image-encoder with --image-features"),
        (["--train-encoders"], "--text-encoder or --image-encoder with"),
        (["--policy", "act", "--text-encoder", "minilm"], "no --text-encoder with"),
        (["--text-encoder", "minilmm"], "'minilmm'. There is no such folder"),
    ],
)
def test_options_of_encoders_without_an_effect_are_refused(
    dataset, tmp_path, capsys, options, message
):
    pytest.importorskip("transformers")
    paths = ["--dataset", str(dataset), "--folder", str(tmp_path / "policy")]
    assert main(["train", *paths, *options]) != 0
    assert message in capsys.readouterr().err


def test_accumulation_is_an_option(dataset, tmp_path):
    assert train(dataset, tmp_path / "parts", "--accumulation-steps", "4") == 0


def test_a_device_that_is_not_there_is_one_message(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "policy", "--device", "cuda:99") == 1
    err = capsys.readouterr().err
    assert "train: expected a device of this machine, such as cpu or cuda:0, got" in err
    assert err.count("\n") == 1


def test_errors_of_collect_are_one_message(tmp_path, capsys):
    folder = tmp_path / "demos"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert main(["collect", "--folder", str(folder), "--episodes", "0"]) == 1
    assert capsys.readouterr().err.startswith("torchrl-vla: collect: expected")
    assert main(["collect", "--env", "tabeltop", "--folder", "f"]) == 1
    assert "Did you mean 'tabletop'?" in capsys.readouterr().err
    assert main(["collect", "--env", "pusht", "--folder", "f"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla: ")
    assert "Traceback" not in err


def write_odd_lerobot(folder):
    """A dataset that is refused without options: names, times, a depth map, a NaN."""
    recording = record((4, 3, 3), cameras=("front", "depth"))
    columns = dict(recording.columns)
    columns["observation.joints"] = columns.pop("observation.state")
    columns["timestamp"] = columns["timestamp"] + np.float32(3e-3)
    columns["action"][5, 1] = np.nan
    write_folder(folder, replace(recording, columns=columns))
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.depth"]["info"] = {"is_depth_map": True}
    return edit_info(folder, features=info["features"])


def test_each_refusal_names_the_option_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_odd_lerobot(tmp_path / "odd")
    options = []
    for flag, values in (
        ("--cameras", ["front"]),
        ("--tolerance-s", ["0.01"]),
        ("--exclude-episodes", ["1"]),
    ):
        assert train(folder, tmp_path / "policy", *options) == 1
        assert f"({flag}" in capsys.readouterr().err
        options += [flag, *values]
    options += ["--rename", "observation.joints", "observation.state"]
    assert train(folder, tmp_path / "policy", *options) == 0
    metadata = load_checkpoint(tmp_path / "policy")[1].metadata
    assert metadata.state_statistics.count == 7
    assert metadata.cameras == ("front",)


def test_an_option_of_another_kind_of_dataset_is_refused(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "policy", "--statistics", "stored") == 1
    assert "(--statistics), which have no effect on it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "7"], "a multiple of the 6 instructions .* (--episodes)"),
        (["--env", "own_parts:Point"], "make_environment: expected a TorchRL env"),
        (["--env", "own_parts:make_env", "--noise", "1"], "leave --noise out"),
    ],
)
def test_an_error_of_collect_is_never_a_traceback(tmp_path, capsys, options, message):
    assert main(["collect", "--folder", str(tmp_path / "demos"), *options]) == 1
    err = capsys.readouterr().err
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), err)
    assert "Traceback" not in err


def test_labels_beyond_the_bounds_are_refused_on_request(tmp_path, capsys):
    own = ["--env", "own_parts:make_env", "--num-envs", "2", "--episodes", "2"]
    arguments = ["collect", "--folder", str(tmp_path / "demos"), *own]
    assert main([*arguments, "--labels", "refuse"]) == 0  # its expert clamps
    assert "2 episodes" in capsys.readouterr().out


@pytest.mark.parametrize("tokenizer", ["fast", "beast"])
def test_a_tokenizer_is_fitted_and_kept_with_the_policy(tokenizer, dataset, tmp_path):
    options = ["--head", "tokens", "--tokenizer", tokenizer]
    assert train(dataset, tmp_path / "run", *options) == 0
    policy, space = load_checkpoint(tmp_path / "run")
    assert space.mode == "min_max"
    name = type(policy.action_tokenizer).__name__
    assert (
        name
        == {"fast": "FASTActionTokenizer", "beast": "BEASTActionTokenizer"}[tokenizer]
    )


def test_a_tokenizer_without_the_head_of_tokens_is_refused(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "run", "--tokenizer", "fast") != 0
    assert "expected --head tokens with --tokenizer" in capsys.readouterr().err
