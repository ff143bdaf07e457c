"""A vision-language model from the command line: train, evaluate, inspect, finetune."""

import pytest
from tiny_vlms import tiny_vlm_folder

from torchrl_vla.cli.main import main
from torchrl_vla.policies import VLMFlowPolicy
from torchrl_vla.recipes import load_checkpoint

ENV = ["--image-size", "16", "--num-envs", "4"]
VLM = ["--policy", "vlm", "--chunk-size", "4", "--steps", "2", "--batch-size", "4"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demos"
    small = ["--image-size", "16", "--num-envs", "8", "--episodes", "6"]
    assert main(["collect", "--folder", str(folder), *small]) == 0
    return str(folder)


def test_a_flow_expert_goes_through_every_command(demos, tmp_path, capsys):
    policy, better = tmp_path / "policy", tmp_path / "better"
    options = [
        *("--backbone", tiny_vlm_folder("smolvlm"), "--head", "flow"),
        *("--lora-rank", "2", "--insulate", "--max-delay", "1", "--num-steps", "2"),
        *("--expert-hidden", "16", "--text-length", "16"),
    ]
    paths = ["--dataset", demos, "--folder", str(policy)]
    assert main(["train", *paths, *VLM, *options]) == 0
    loaded, space = load_checkpoint(policy)
    assert type(loaded) is VLMFlowPolicy
    assert loaded.trunk.config.lora.rank == 2
    assert loaded.flow_training.max_delay == 1
    assert loaded.policy_space == space.policy_space
    assert main(["evaluate", "--policy", str(policy), *ENV, "--episodes", "2"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(policy)]) == 0
    assert "VLMFlowPolicy" in capsys.readouterr().out
    short = ["--iterations", "1", "--eval-episodes", "2", "--num-decisions", "2"]
    paths = ["--policy", str(policy), "--folder", str(better)]
    assert main(["finetune", *paths, *ENV, *short, "--epochs", "1"]) == 0
    improved, _ = load_checkpoint(better / "policy")
    assert improved.has_likelihood


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "vlm"], "expected --backbone with --policy vlm"),
        (["--policy", "vlm", "--backbone", "x", "--hidden", "8"], "no --hidden"),
        (["--backbone", "x"], "expected no --backbone with --policy tiny"),
        (["--head", "parallel"], "got 'parallel'"),
        (["--policy", "vlm", "--backbone", "x", "--head", "diffusion"], "'diffusion'"),
        (["--policy", "vlm", "--backbone", "nowhere"], "a folder, a file"),
    ],
)
def test_options_that_do_not_fit_are_named(demos, tmp_path, capsys, options, said):
    assert main(["train", "--dataset", demos, "--folder", str(tmp_path), *options]) == 1
    assert said in capsys.readouterr().err
