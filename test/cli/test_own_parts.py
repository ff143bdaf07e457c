"""A user's own policy, environment and dataset folder through every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_parts import OwnPolicy

from torchrl_vla.cli.main import main
from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.recipes import load_checkpoint

ENV = ["--env", "own_parts:make_env", "--num-envs", "4"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "demos"
    assert main(["collect", *ENV, "--folder", str(folder), "--episodes", "24"]) == 0
    return str(folder)


def evaluate(policy, path, *options):
    arguments = ["--policy", str(policy), "--json", str(path), "--episodes", "8"]
    return main(["evaluate", *ENV, *arguments, *options])


def test_own_parts_go_through_every_command(dataset, tmp_path, capsys):
    policy, tuned = tmp_path / "policy", tmp_path / "tuned"
    paths = ["--dataset", dataset, "--folder", str(policy)]
    sizes = ["--steps", "150", "--batch-size", "64", "--lr", "0.02"]
    assert main(["train", *paths, "--policy", "own_parts:make_policy", *sizes]) == 0
    assert evaluate(policy, tmp_path / "cloned.json") == 0
    summary = json.loads((tmp_path / "cloned.json").read_text())["summary"]
    assert summary["success_rate"] > 0.5

    budget = ["--iterations", "2", "--eval-episodes", "8", "--minibatch-size", "32"]
    groups = ["--algorithm", "grpo", "--group-size", "2", "--keep", "None"]
    paths = ["--policy", str(policy), "--folder", str(tuned)]
    assert main(["finetune", *ENV, *paths, *groups, *budget]) == 0
    assert evaluate(tuned / "policy", tmp_path / "tuned.json") == 0
    files = [str(tmp_path / "tuned.json"), str(tmp_path / "cloned.json")]
    assert main(["compare", *files]) == 0
    assert "8 paired episodes" in capsys.readouterr().out


def test_an_own_policy_comes_back_equal(dataset, tmp_path):
    paths = ["--dataset", dataset, "--folder", str(tmp_path / "policy")]
    own = ["--policy", "own_parts:make_policy", "--steps", "2"]
    assert main(["train", *paths, *own]) == 0
    loaded, space = load_checkpoint(tmp_path / "policy")
    assert loaded.policy_space == space.policy_space
    torch.manual_seed(0)  # the command's own
    again = OwnPolicy(2)
    assert {v.shape for v in loaded.state_dict().values()} == {
        v.shape for v in again.state_dict().values()
    }


def test_an_own_policy_is_evaluated_as_it_is_made(tmp_path):
    assert evaluate("own_parts:make_policy", tmp_path / "result.json") == 0


def test_options_of_the_tiny_policies_are_refused(dataset, tmp_path, capsys):
    paths = ["--dataset", dataset, "--folder", str(tmp_path / "policy")]
    own = ["--policy", "own_parts:make_policy", "--hidden", "16"]
    assert main(["train", *paths, *own]) == 1
    assert "expected no --hidden with --policy own_parts:" in capsys.readouterr().err


MODULE = """
from torch import nn

class Policy(nn.Module):
    chunk_size, action_dim = 2, {action_dim}
    in_keys = [("observation", "state")]

    def __init__(self):
        super().__init__()
        self.net = nn.Linear({state_dim}, 2 * {action_dim})

    def forward(self, data):
        return self.net(data["observation", "state"]).unflatten(-1, (2, {action_dim}))
"""

FACTORY = """
def make_policy():
    return Policy()
"""


def test_the_installed_command_finds_modules_of_the_current_directory(
    dataset, tmp_path
):
    metadata = DemonstrationDataset.from_folder(dataset).metadata
    sizes = {"action_dim": metadata.action_dim, "state_dim": metadata.state_dim}
    (tmp_path / "typed_by_hand.py").write_text(MODULE.format(**sizes) + FACTORY)
    command = [Path(sys.executable).with_name("torchrl-vla"), "train"]
    own = ["--policy", "typed_by_hand:make_policy", "--steps", "2"]
    paths = ["--dataset", dataset, "--folder", "policy"]
    done = subprocess.run(
        [*command, *own, *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "policy" / "policy" / "config.json").exists()
