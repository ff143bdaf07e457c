from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from served_policies import health

from torchrl_vla.cli.main import main
from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult, hash_folder
from torchrl_vla.recipes import make_policy, save_checkpoint
from torchrl_vla.recipes.served_policies import example_observation, load_served_policy
from torchrl_vla.serving import PolicyServer
from torchrl_vla.spaces import ModelSpace

SMALL = ["--image-size", "16", "--num-envs", "4", "--episodes", "6"]
PROGRAM = "import sys; from torchrl_vla.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    env = TabletopEnv(4, image_size=16, seed=0)
    dataset = collect(env, env.make_expert(), 4, folder=folder / "data", progress=False)
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    return save_checkpoint(folder / "policy", policy, ModelSpace(dataset.metadata))


@pytest.fixture(scope="module")
def server(checkpoint):
    policy, manifest = load_served_policy(str(checkpoint))
    with PolicyServer(policy, manifest) as server:
        yield server


def evaluate(policy, out, *options: str) -> EvaluationResult:
    arguments = ["--policy", str(policy), "--json", str(out), *SMALL, *options]
    assert main(["evaluate", *arguments]) == 0
    return EvaluationResult.from_json(out)


def test_an_evaluation_of_a_served_policy_has_the_episodes_of_a_local_one(
    checkpoint, server, tmp_path
):
    local = evaluate(checkpoint, tmp_path / "local.json")
    served = evaluate(server.address, tmp_path / "served.json")
    assert served.episodes == local.episodes
    assert served.provenance["policy"] == {
        "source": server.address,
        "sha256": hash_folder(checkpoint),
    }


def test_the_interval_and_the_conversion_are_the_clients(server, checkpoint, tmp_path):
    options = ["--replan-interval", "2", "--convert"]
    local = evaluate(checkpoint, tmp_path / "local.json", *options)
    served = evaluate(server.address, tmp_path / "served.json", *options)
    assert served.episodes == local.episodes


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--device", "cpu"], "device"),
        (["--rename-map", '{"a": "b"}'], "rename_map"),
        (["--empty-cameras", "a"], "empty_cameras"),
    ],
)
def test_options_of_the_server_are_refused_at_the_client(
    options, named, server, capsys
):
    arguments = ["evaluate", "--policy", server.address, *SMALL, *options]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"expected no ['{named}']" in error
    assert "Pass them to `torchrl-vla serve`" in error


def test_another_robot_is_refused(checkpoint, tmp_path, capsys):
    policy, manifest = load_served_policy(str(checkpoint))
    other = replace(manifest.metadata, action_units=("mm", "mm"))
    with PolicyServer(policy, replace(manifest, metadata=other)) as server:
        arguments = ["evaluate", "--policy", server.address, *SMALL]
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "  - action_units: ('mm', 'mm') against" in error


def test_a_server_is_warmed_up_with_the_sizes_of_its_robot(checkpoint):
    policy, manifest = load_served_policy(str(checkpoint))
    robot = replace(manifest.metadata, image_sizes=((3, 16, 16),))
    manifest = replace(manifest, metadata=robot)
    example = example_observation(manifest)
    assert example["observation", "image"].shape == (1, 3, 16, 16)
    PolicyServer(policy, manifest).warm_up(example)
    assert example_observation(replace(manifest, metadata=None)) is None


def test_the_command_serves_until_sigterm_and_asks_for_its_token(
    checkpoint, tmp_path, monkeypatch, capsys
):
    environment = {**os.environ, "TORCHRL_VLA_TOKEN": "sesame"}
    arguments = ["serve", "--policy", str(checkpoint), "--port", "0", "--audit"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(f"Serving {checkpoint} (shared) at ws://"), line
            address = line.split()[-1]
            assert main(["evaluate", "--policy", address, *SMALL]) == 1
            assert "expected the token of" in capsys.readouterr().err
            monkeypatch.setenv("TORCHRL_VLA_TOKEN", "sesame")
            served = evaluate(address, tmp_path / "served.json")
            monkeypatch.delenv("TORCHRL_VLA_TOKEN")
            assert len(served.episodes) == 6
            assert health(address)["status"] == "ok"
            process.send_signal(signal.SIGTERM)
            out, log = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, log
    answers = int(out.split("Ended after ")[1].split()[0])
    assert answers > 0
    assert log.count('"event": "request"') == answers
    assert "sesame" not in out + log
