from __future__ import annotations

import json

import pytest
import torch

from torchrl_vla.cli.main import main
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult, compare, hash_folder
from torchrl_vla.policies import TinyVLA
from torchrl_vla.recipes import ModelSpace, save_checkpoint

SMALL = ["--image-size", "16", "--num-envs", "4", "--episodes", "6"]


@pytest.fixture
def policy(tmp_path):
    torch.manual_seed(0)
    env = TabletopEnv(1, image_size=16)
    made = TinyVLA(
        action_dim=2,
        chunk_size=4,
        state_dim=2,
        instructions=env.instructions,
        hidden=16,
    )
    space = ModelSpace(env.metadata, "none")
    return save_checkpoint(tmp_path / "policy", made, space)


def test_the_control_arm_meets_the_same_episodes_and_is_compared(
    policy, tmp_path, capsys
):
    out = tmp_path / "result.json"
    arguments = ["--policy", str(policy), "--json", str(out), *SMALL]
    assert main(["evaluate", *arguments, "--control", "shuffled-instruction"]) == 0
    result = EvaluationResult.from_json(out)
    control = EvaluationResult.from_json(tmp_path / "result.shuffled-instruction.json")
    assert control.provenance["control"] == "shuffled-instruction"
    assert "control" not in result.provenance
    comparison = compare(result, control, names=("policy", "shuffled-instruction"))
    assert capsys.readouterr().out.endswith(f"{comparison}\n")
    assert comparison.remarks == []


def test_the_json_says_what_was_evaluated_where_and_how(policy, tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--policy", str(policy), "--json", str(out), "--seed", "5", *SMALL]
    assert main(["evaluate", *arguments]) == 0
    known = json.loads(out.read_text())["provenance"]
    assert known["policy"] == {"source": str(policy), "sha256": hash_folder(policy)}
    assert known["environment"]["class"] == "TabletopEnv"
    assert known["environment"]["max_steps"] == 40
    assert known["command"]["command"] == "evaluate"
    assert known["command"]["image_size"] == 16
    assert known["command"]["json"] == str(out)
    assert (known["seed"], known["num_envs"], known["deterministic"]) == (5, 4, True)
    assert known["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--env", "tabletop/reach-red", "--control", "shuffled-instruction"],
            "--control: make_control: expected an environment with several",
        ),
    ],
)
def test_a_control_that_would_change_nothing_is_refused(
    policy, capsys, options, message
):
    assert main(["evaluate", "--policy", str(policy), *SMALL, *options]) == 1
    assert message in capsys.readouterr().err
