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


def without_command(path):
    values = json.loads(path.read_text())
    values["provenance"].pop("command", None)
    return values


def test_shards_merge_to_the_file_of_one_run(policy, tmp_path, capsys):
    arguments = ["evaluate", "--policy", str(policy), *SMALL]
    whole, merged = tmp_path / "whole.json", tmp_path / "merged.json"
    assert main([*arguments, "--json", str(whole)]) == 0
    parts = []
    for number in (1, 2):
        parts.append(str(tmp_path / f"part{number}.json"))
        shard = ["--shard", f"{number}/2", "--json", parts[-1]]
        assert main([*arguments, *shard]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--merge", *parts[::-1], "--json", str(merged)]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{EvaluationResult.from_json(whole)}\n"
    values = without_command(merged)
    shards = values["provenance"].pop("shards")
    assert [shard["command"]["shard"] for shard in shards] == ["1/2", "2/2"]
    assert values == without_command(whole)


def test_a_missing_shard_is_one_message(policy, tmp_path, capsys):
    out = str(tmp_path / "part.json")
    arguments = ["--policy", str(policy), "--shard", "1/3", "--json", out]
    assert main(["evaluate", *arguments, *SMALL]) == 0
    assert main(["evaluate", "--merge", out]) == 1
    err = capsys.readouterr().err
    assert "expected 3 shards, got 1: 2/3, 3/3 missing" in err
    assert main(["evaluate", "--merge", out, "--policy", str(policy)]) == 1
    assert "--merge: expected no --policy beside it" in capsys.readouterr().err
    assert main(["evaluate", *SMALL]) == 1
    assert "--policy: expected a policy, got none" in capsys.readouterr().err


INTERRUPTED = """
import torch
from pathlib import Path
from tensordict.nn import TensorDictModule

def make(metadata):
    def act(seed):
        if seed.max() >= 2**29 + 4 and not Path("pressed").exists():
            Path("pressed").touch()
            raise KeyboardInterrupt
        return torch.ones(*seed.shape, 1, 2)
    policy = TensorDictModule(act, ["episode_seed"], ["action_chunk"])
    policy.chunk_size, policy.action_dim = 1, 2
    return policy
"""


def test_after_ctrl_c_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pressing.py").write_text(INTERRUPTED)
    out, kept = tmp_path / "result.json", tmp_path / "result.episodes.jsonl"
    command = ["evaluate", "--policy", "pressing:make", *SMALL, "--json"]
    assert main([*command, str(out)]) == 130
    err = capsys.readouterr().err
    assert "torchrl-vla: evaluate: interrupted." in err
    assert f"of 6 episodes are finished and kept in {str(kept)!r}" in err
    assert not out.exists()
    assert main([*command, str(out), "--seed", "1"]) == 1
    assert "got command.seed 0 there and 1 here" in capsys.readouterr().err
    finished = kept.read_text().splitlines()[1:]
    assert finished
    assert main([*command, str(out), "--num-envs", "2"]) == 0
    assert not kept.exists()
    assert main([*command, str(tmp_path / "whole.json"), "--num-envs", "2"]) == 0
    assert without_command(out) == without_command(tmp_path / "whole.json")


def test_the_grid_shows_the_chosen_episodes(policy, tmp_path, capsys):
    av = pytest.importorskip("av")
    out = tmp_path / "grid.mp4"
    arguments = ["--policy", str(policy), "--video-grid", str(out), *SMALL]
    assert main(["evaluate", *arguments, "--video-episodes", "1", "4"]) == 0
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (2 * (160 + 8), 160 + 8)
    assert main(["evaluate", *arguments, "--video-episodes", "6"]) == 1
    assert "--video-episodes: expected numbers below 6" in capsys.readouterr().err


def test_a_preset_of_another_environment_is_refused(policy, capsys):
    arguments = ["--policy", str(policy), "--preset", "lerobot-libero", *SMALL]
    assert main(["evaluate", *arguments]) == 1
    err = capsys.readouterr().err
    assert "expected the environment 'libero' with the preset 'lerobot-libero'" in err
    assert "got 'tabletop'" in err


def test_the_executor_is_chosen_by_name(tmp_path, capsys):
    torch.manual_seed(0)
    env = TabletopEnv(4, image_size=16, seed=0)
    dataset = collect(env, env.make_expert(), 4, folder=tmp_path / "d", progress=False)
    flow = make_policy(dataset, chunk_size=8, hidden=16, head="flow")
    folder = save_checkpoint(tmp_path / "flow", flow, ModelSpace(dataset.metadata))
    successes = {}
    for name, options in {
        "default": [],
        "chunks": ["--executor", "chunks"],
        "rtc": ["--executor", "rtc", "--inference-delay", "2"],
        "thread": ["--executor", "rtc", "--worker", "thread"],
        "async": ["--executor", "async", "--request-at", "3"],
    }.items():
        out = tmp_path / f"{name}.json"
        arguments = ["--policy", str(folder), "--json", str(out), *SMALL, *options]
        assert main(["evaluate", *arguments]) == 0
        result = EvaluationResult.from_json(out)
        successes[name] = [episode.length for episode in result.episodes]
        chosen = result.provenance["command"]["execution"]["executor"]
        assert chosen == {"default": "chunks", "thread": "rtc"}.get(name, name)
    assert successes["default"] == successes["chunks"]
    assert all(len(lengths) == 6 for lengths in successes.values())
    assert main(["evaluate", "--policy", str(folder), *SMALL, "--worker", "thread"])
    assert "They would have no effect" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "rate"), [("random", 0.0), ("scripted", 1.0)])
def test_policies_without_training_are_evaluated_by_name(name, rate, tmp_path):
    out = tmp_path / "result.json"
    on_demand = [*SMALL, "--render-on-demand", "--json", str(out)]
    assert main(["evaluate", "--policy", name, *on_demand]) == 0
    result = EvaluationResult.from_json(out)
    assert result.success_rate == rate
    assert result.provenance["policy"]["source"] == name


def test_options_of_a_policy_are_refused_for_one_without(capsys):
    assert main(["evaluate", "--policy", "scripted", "--convert", *SMALL]) == 1
    err = capsys.readouterr().err
    assert "evaluate: expected no ['convert'] (--convert) for 'scripted'" in err
    assert main(["evaluate", "--policy", "scripted", "--env", "pusht", *SMALL]) == 1
    assert "scripted expert at --env, got PushTEnv" in capsys.readouterr().err
