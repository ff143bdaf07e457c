"""Trainings on two gloo ranks against one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from ranked_learning import ALGORITHMS, learn, make_rollout
from ranked_trainings import (
    CASES,
    meet_refusals,
    run_all,
    run_chunk_training,
    run_cloning,
    shard_at_the_root,
)
from two_ranks import run_ranks

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import load_checkpoint

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def on_two_ranks(folder):
    return run_ranks(run_all, folder)


def assert_close(weights, others, atol):
    assert weights.keys() == others.keys()
    for key, value in others.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_train_as_one_process_does(case, on_two_ranks):
    name, _, parts = case
    alone, losses = run_chunk_training(name, None, parts=parts)
    for results, _, _ in on_two_ranks:
        weights, seen = results[case]
        assert seen == pytest.approx(losses, abs=1e-9)
        assert_close(weights, alone, atol=1e-9)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_cloning_on_two_ranks_gives_both_the_weights_of_one(parallel, on_two_ranks):
    alone, _ = run_cloning("ddp")
    for index, (_, cloned, _) in enumerate(on_two_ranks):
        weights, rank = cloned[parallel]
        assert rank == index
        # float32, and Adam divides a gradient by its own size however small it is:
        # single weights may differ by as much as the learning rate, 1e-3.
        assert_close(weights, alone, atol=1e-3)
        errors = [
            (weights[key] - value).abs().flatten() for key, value in alone.items()
        ]
        assert torch.cat(errors).mean() < 1e-6


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_resume_bit_for_bit(parallel, on_two_ranks):
    for results, _, resumed in on_two_ranks:
        uninterrupted, losses = results["chunk", parallel, 1]
        assert resumed[parallel][1] == losses
        assert_close(resumed[parallel][0], uninterrupted, atol=0)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_resumes_what_two_ranks_began(parallel, on_two_ranks, folder):
    uninterrupted, losses = run_chunk_training("chunk", None)
    weights, seen = run_chunk_training(
        "chunk", None, folder=folder / f"{parallel}-alone"
    )
    assert seen == pytest.approx(losses, abs=1e-9)
    assert_close(weights, uninterrupted, atol=1e-9)


def test_ranks_that_do_not_fit_together_are_refused_on_each(folder):
    expected = {
        "settings": r"same settings .* rank 0: \{'seed': 0\}, rank 1: \{'seed': 1\}",
        "weights": "same initial weights on all 2 ranks.*Seed PyTorch alike",
        "frames": "same number of frames on all 2 ranks, got rank 0: 24, rank 1: 25",
        "batch": "a batch_size that 2 ranks share evenly, got 7. Pass a multiple of 2",
        "folder": r"a disk that all ranks share, got ranks \[1\]",
    }
    for said in run_ranks(meet_refusals, folder):
        assert said.keys() == expected.keys()
        for name, text in expected.items():
            with pytest.raises(ValueError, match=text):
                raise ValueError(said[name])


def test_a_policy_that_is_sharded_at_its_root_is_refused_where_it_would_not_train():
    for said in run_ranks(shard_at_the_root, "chunk"):
        if torch.__version__ >= "2.12":
            assert "trains nothing. Shard with torchrl_vla.distributed.shard" in said
        else:
            assert said == "no refusal"


def test_two_ranks_learn_from_decisions_as_one_process_does():
    rollouts = dict.fromkeys(ALGORITHMS, make_rollout())
    alone = learn(rollouts)
    for results in run_ranks(learn, rollouts):
        for name, (weights, numbers) in results.items():
            expected_weights, expected = alone[name]
            expected.pop("explained_variance", None)  # of one process only
            assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-5)
            errors = [
                (weights[key] - value).abs().flatten()
                for key, value in expected_weights.items()
            ]
            assert torch.cat(errors).mean() < 1e-6


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m"]
    return subprocess.run(
        [*command, "torchrl_vla", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        **options,
    )


@pytest.fixture(scope="module")
def demonstrations(folder):
    env = TabletopEnv(4, image_size=16)
    path = folder / "demonstrations"
    collect(env, env.make_expert(), 4, folder=path, progress=False)
    return path


def test_torchrun_trains_and_writes_one_policy(demonstrations, folder):
    options = ["--hidden", 16, "--steps", 3, "--batch-size", 8, "--parallel", "fsdp"]
    cloned = folder / "cloned"
    done = torchrun("train", "--dataset", demonstrations, "--folder", cloned, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("policy in") == 1
    assert sorted(path.name for path in cloned.iterdir()) == [
        "learning_curve.csv",
        "metadata.json",
        "model_space.json",
        "policy",
    ]
    policy, _ = load_checkpoint(cloned)
    assert all(value.isfinite().all() for value in policy.state_dict().values())


def test_when_a_rank_dies_the_others_stop_with_its_error(demonstrations, folder):
    (folder / "dying.py").write_text(DYING)
    done = torchrun(
        "train",
        *("--dataset", demonstrations, "--folder", folder / "dead"),
        *("--policy", "dying:make_policy", "--steps", 100, "--batch-size", 8),
        cwd=folder,
    )
    assert done.returncode != 0
    assert "planted death of rank 1" in done.stderr


def test_other_commands_refuse_torchrun(demonstrations):
    done = torchrun("inspect", demonstrations)
    assert done.returncode != 0
    assert "inspect: expected one process, got 2 of torchrun" in done.stderr


DYING = """
import os

import torch
from torch import nn


class Dying(nn.Module):
    in_keys = [("observation", "state")]
    out_keys = ["action_chunk"]
    chunk_size = 2

    def __init__(self, state_dim, action_dim):
        super().__init__()
        self.action_dim = action_dim
        self.layer = nn.Linear(state_dim, 2 * action_dim)
        self.calls = 0

    def forward(self, tensordict):
        self.calls += 1
        if self.calls > 3 and os.environ["RANK"] == "1":
            raise RuntimeError("planted death of rank 1")
        chunk = self.layer(tensordict["observation", "state"])
        return tensordict.set("action_chunk", chunk.unflatten(-1, (2, -1)))


def make_policy(metadata):
    return Dying(metadata.state_dim, metadata.action_dim)
"""
