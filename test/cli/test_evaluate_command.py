from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from torchrl_vla.cli import library
from torchrl_vla.cli.main import main
from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult, compare, evaluate, hash_folder
from torchrl_vla.recipes import load_executor, make_policy, save_checkpoint
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.spaces import ModelSpace

SMALL = ["--image-size", "16", "--num-envs", "4", "--episodes", "6"]


@pytest.fixture
def policy(tmp_path):
    torch.manual_seed(0)
    env = TabletopEnv(4, image_size=16, seed=0)
    folder = tmp_path / "dataset"
    dataset = collect(env, env.make_expert(), 4, folder=folder, progress=False)
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    return save_checkpoint(tmp_path / "policy", policy, ModelSpace(dataset.metadata))


def test_the_ablation_runs_the_same_episodes_and_is_compared(policy, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--policy", str(policy), "--json", str(out), *SMALL]
    assert main(["evaluate", *arguments, "--ablate", "shuffled-instruction"]) == 0
    result = EvaluationResult.from_json(out)
    ablated = EvaluationResult.from_json(tmp_path / "result.shuffled-instruction.json")
    assert ablated.provenance["ablation"] == "shuffled-instruction"
    assert "ablation" not in result.provenance
    comparison = compare(result, ablated, names=("policy", "shuffled-instruction"))
    assert capsys.readouterr().out.endswith(f"{comparison}\n")
    assert comparison.remarks == []


def test_the_demonstrations_episodes_are_run_by_name(policy, tmp_path):
    seeds = {}
    for purpose in ("evaluation", "demonstrations"):
        out = tmp_path / f"{purpose}.json"
        arguments = ["--policy", str(policy), "--json", str(out), *SMALL]
        assert main(["evaluate", *arguments, "--purpose", purpose]) == 0
        result = EvaluationResult.from_json(out)
        assert result.provenance["purpose"] == purpose
        seeds[purpose] = [episode.seed for episode in result.episodes]
    count = len(seeds["evaluation"])
    assert seeds["demonstrations"] == list(range(count))
    assert seeds["evaluation"] == [2**29 + i for i in range(count)]


def test_the_json_says_what_was_evaluated_where_and_how(policy, tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--policy", str(policy), "--json", str(out), "--seed", "5", *SMALL]
    assert main(["evaluate", *arguments]) == 0
    known = json.loads(out.read_text())["provenance"]
    assert known["policy"] == {"source": str(policy), "sha256": hash_folder(policy)}
    assert known["environment"]["class"] == "TabletopEnv"
    assert known["environment"]["max_steps"] == 40
    assert known["command"]["command"] == "evaluate"
    assert known["command"]["env"]["image_size"] == 16
    assert known["command"]["json"] == str(out)
    assert (known["seed"], known["num_envs"], known["deterministic"]) == (5, 4, True)
    assert known["versions"]["torch"] == torch.__version__


def test_rendering_on_demand_changes_nothing_but_the_time(policy, tmp_path):
    records = []
    for name, options in (("all", []), ("some", ["--render-on-demand"])):
        out = tmp_path / f"{name}.json"
        arguments = ["--policy", str(policy), "--json", str(out), *SMALL, *options]
        assert main(["evaluate", *arguments]) == 0
        records.append(EvaluationResult.from_json(out).episodes)
    assert records[0] == records[1]


def test_other_conventions_are_converted_when_asked_for(policy, capsys):
    arguments = ["evaluate", "--policy", str(policy), *SMALL]
    assert main([*arguments, "--convert"]) == 0
    assert "nothing to convert: both sides" in capsys.readouterr().out
    path = policy / "metadata.json"
    robot = RobotDatasetMetadata.from_json(path)
    x, y = robot.state_names
    trained = replace(robot, state_names=(y, x))  # the order of its training
    path.write_text(trained.to_json())
    assert main(arguments) == 1
    assert "state_names: " in capsys.readouterr().err
    assert main([*arguments, "--convert"]) == 0
    printed = capsys.readouterr().out
    assert f"state_names: ('{x}', '{y}') becomes ('{y}', '{x}')" in printed
    step = TabletopEnv(4, image_size=16, seed=0).reset()
    step["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    swapped = step.clone()
    swapped["observation", "state"] = step["observation", "state"].flip(-1)
    converting = load_executor(policy, metadata=robot, convert=True)
    plain = load_executor(policy, metadata=trained)
    assert torch.equal(converting(step)["action"], plain(swapped)["action"])


def test_what_has_no_conversion_is_listed_on_the_command_line(policy, capsys):
    path = policy / "metadata.json"
    metadata = RobotDatasetMetadata.from_json(path)
    path.write_text(replace(metadata, action_units=("deg", "deg")).to_json())
    assert main(["evaluate", "--policy", str(policy), "--convert", *SMALL]) == 1
    err = capsys.readouterr().err
    assert "difference(s) without a conversion" in err
    assert "action_units" in err


def test_options_of_a_checkpoint_are_refused_for_a_function(capsys):
    arguments = ["--policy", "own_parts:make_policy", "--convert", *SMALL]
    assert main(["evaluate", *arguments]) == 1
    assert "expected no ['convert'] for 'own_parts:make" in capsys.readouterr().err


def test_an_ablation_that_would_change_nothing_is_refused(policy, capsys):
    one = ["--env", "tabletop/reach-red", "--ablate", "shuffled-instruction"]
    assert main(["evaluate", "--policy", str(policy), *SMALL, *one]) == 1
    err = capsys.readouterr().err
    assert "--ablate: make_ablation: expected an environment with several" in err


def test_the_policy_and_its_ablation_draw_the_same_noise(policy, monkeypatch):
    draws = []

    def measure(env, actor, episodes, **options):
        draws.append(torch.rand(1).item())
        return evaluate(env, actor, episodes, **options)

    monkeypatch.setattr(library, "evaluate", measure)
    arguments = ["--policy", str(policy), "--ablate", "zero-state", *SMALL]
    assert main(["evaluate", *arguments]) == 0
    assert len(draws) == 2
    assert draws[0] == draws[1]
