from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.collectors.distributed import (
    DistributedCollector,
    DistributedSyncCollector,
    RayCollector,
)
from torchrl.envs import TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes import (
    PPO,
    FinetuneSettings,
    Rollouts,
    WorkerRollouts,
    finetune,
    make_decision_env,
    make_environment,
    make_policy,
    make_space,
    save_checkpoint,
)
from torchrl_vla.schema import ExecutionError, MissingKeyError

# One optimizer step per batch, at weights that nothing has changed since: the ratio
# is exactly 1 if, and only if, the weights that acted are those that learn. The step
# is large, so that the next batch tells old weights from new ones.
ONE_STEP = FinetuneSettings(
    algorithm=PPO(critic_warmup=0),
    iterations=4,
    epochs=1,
    minibatch_size=24,
    lr=1e-2,
    entropy_coeff=0.1,
    eval_episodes=8,
    eval_interval=9,
)


def make_env(num_envs=4):
    return TabletopEnv(num_envs, image_size=16, num_blocks=2, max_steps=12, seed=0)


def apart(policy):
    """Copy a policy: one machine shares the memory of the weights, several cannot."""
    copied = copy.deepcopy(policy)
    copied.instructions = policy.instructions
    return copied


class WorkerEnv:
    """Makes the environment of a worker process."""

    def __init__(self, metadata, seed):
        self.metadata, self.seed = metadata, seed

    def __call__(self):
        space = make_space(self.metadata, "tokens")
        return make_decision_env(make_env(), space, chunk_size=4, seed=self.seed)


class InProcess:
    """Stands for workers: acts with a copy, ``lag`` updates behind what it was sent."""

    def __init__(self, metadata, policy, lag=0, seed=0, make_env=None, batches=-1):
        self.policy = apart(policy)
        self.lag, self.sent, self.is_closed = lag, [], False
        make_env = WorkerEnv(metadata, seed) if make_env is None else make_env
        self.collector = Collector(
            make_env(),
            self.policy,
            frames_per_batch=24,
            total_frames=24 * batches if batches > 0 else -1,
            auto_register_policy_transforms=False,
        )

    def __iter__(self):
        return iter(self.collector)

    def update_policy_weights_(self, policy):
        self.sent.append(copy.deepcopy(policy.state_dict()))
        self.policy.load_state_dict(self.sent[max(0, len(self.sent) - 1 - self.lag)])

    def shutdown(self):
        self.collector.shutdown()
        self.is_closed = True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env()
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 8, folder=folder, progress=False)


@pytest.fixture
def policy(dataset):
    torch.manual_seed(0)
    return make_policy(dataset, chunk_size=4, head="tokens", hidden=16, depth=1).eval()


def makers(dataset):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return [WorkerEnv(dataset.metadata, seed) for seed in range(2)]


def run(dataset, policy, collector, folder, settings=ONE_STEP):
    space = make_space(dataset.metadata, "tokens")
    result = finetune(
        policy,
        space,
        make_env(),
        folder,
        settings,
        collector=collector,
        progress=False,
    )
    return [row["max_ratio"] for row in result.log], result


def check_that_the_workers_keep_up(dataset, policy, collector, folder):
    before = copy.deepcopy(policy.state_dict())
    ratios, result = run(dataset, policy, collector, folder)
    assert ratios == [1.0, 1.0, 1.0, 1.0]
    assert [row["decisions"] for row in result.log] == [24, 24, 24, 24]
    after = policy.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_without_a_space_nothing_is_scaled_on_either_side():
    env = make_decision_env(make_env(), None, chunk_size=2, replan_interval=1)
    plain = make_env()
    step = env.reset()
    before = plain.reset(episode_seeds=step["episode_seed"])
    assert torch.equal(step["observation", "state"], before["observation", "state"])
    chunk = torch.tensor([[0.5, -0.25], [1.0, 1.0]]).expand(4, 2, 2)
    after = env.step(step.set("action_chunk", chunk.clone()))["next"]
    expected = plain.step(before.set("action", chunk[:, 0].clone()))["next"]
    assert torch.equal(after["observation", "state"], expected["observation", "state"])


@pytest.mark.xdist_group("processes")
def test_processes_act_with_the_weights_that_were_just_learned(
    dataset, policy, tmp_path
):
    collector = MultiSyncCollector(
        makers(dataset),
        apart(policy),
        frames_per_batch=24,
        total_frames=-1,
        auto_register_policy_transforms=False,
        cat_results="stack",
    )
    check_that_the_workers_keep_up(dataset, policy, collector, tmp_path)


@pytest.mark.xdist_group("processes")
def test_so_do_those_of_a_distributed_collector(dataset, policy, tmp_path):
    collector = DistributedCollector(
        makers(dataset),
        apart(policy),
        frames_per_batch=24,
        total_frames=10**9,
        sync=True,
        launcher="mp",
        tcp_port=free_port(),
        collector_kwargs={"auto_register_policy_transforms": False},
    )
    check_that_the_workers_keep_up(dataset, policy, collector, tmp_path)


@pytest.mark.xdist_group("processes")
def test_so_do_those_of_ray(dataset, policy, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    collector = RayCollector(
        makers(dataset),
        apart(policy),
        frames_per_batch=24,
        total_frames=10**9,
        sync=True,
        collector_kwargs={"auto_register_policy_transforms": False},
        remote_configs={"num_cpus": 0.5},
        ray_init_config={
            "address": "local",
            "num_cpus": 1,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": False,
        },
    )
    check_that_the_workers_keep_up(dataset, policy, collector, tmp_path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_the_copy_that_stands_for_workers_keeps_up_too(dataset, policy, tmp_path):
    collector = InProcess(dataset.metadata, policy)
    check_that_the_workers_keep_up(dataset, policy, collector, tmp_path)
    assert collector.is_closed


def test_with_weights_that_are_not_sent_the_learner_stops_before_its_step(
    dataset, policy, tmp_path, monkeypatch
):
    monkeypatch.setattr(WorkerRollouts, "sync", lambda self: None)
    monkeypatch.setattr(WorkerRollouts, "_check_weights", lambda *_: None)
    collector = InProcess(dataset.metadata, policy)
    with pytest.raises(SettingsError, match="again in iteration 2, got ratios up to"):
        run(dataset, policy, collector, tmp_path)


def test_a_collector_that_lags_is_refused_and_stopped(dataset, policy, tmp_path):
    collector = InProcess(dataset.metadata, policy, lag=1)
    with pytest.raises(
        ExecutionError,
        match=r"expected decisions of the weights that are trained, got "
        r"log-probabilities that are off by up to \d\.\d+ from InProcess in iteration "
        r"2\. Use .* FinetuneSettings\(recompute=True\)",
    ):
        run(dataset, policy, collector, tmp_path)
    assert collector.is_closed


def test_one_worker_of_many_that_lags_is_found(dataset, policy):
    seen = InProcess(dataset.metadata, policy)
    batch = next(iter(seen))
    batch["element_log_probs"][2] += 0.01
    rollouts = WorkerRollouts(Repeat(batch), policy)
    with pytest.raises(ExecutionError, match=r"off by up to 0\.01"):
        rollouts.collect(1)
    batch["element_log_probs"][2] -= 0.01
    assert rollouts.collect(2) is batch


def test_a_learner_that_recomputes_takes_what_lags(dataset, policy, tmp_path):
    settings = replace(ONE_STEP, recompute=True)
    collector = InProcess(dataset.metadata, policy, lag=1)
    ratios, _ = run(dataset, policy, collector, tmp_path, settings)
    assert ratios == [1.0, 1.0, 1.0, 1.0]


def test_a_training_that_goes_on_sends_its_weights_first(dataset, policy, tmp_path):
    begun = replace(ONE_STEP, iterations=2)
    fresh = apart(policy)
    run(dataset, policy, InProcess(dataset.metadata, policy), tmp_path, begun)
    # the workers are made with the first weights, then the folder is read
    collector = InProcess(dataset.metadata, fresh)
    ratios, _ = run(dataset, fresh, collector, tmp_path)
    assert ratios == [1.0, 1.0, 1.0, 1.0]


def test_the_distributed_collector_that_runs_ahead_is_refused_by_name(policy):
    class Ahead(DistributedSyncCollector):
        def __init__(self):
            self.is_closed = False

        def shutdown(self, timeout=None):
            self.is_closed = True

    collector = Ahead()
    with pytest.raises(
        ExecutionError,
        match=r"got DistributedSyncCollector, whose workers collect the next batch "
        r"while this one is learned from\. Use DistributedCollector\(sync=True\)",
    ):
        WorkerRollouts(collector, policy)
    assert collector.is_closed


class Repeat:
    """Yields one batch for ever."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch

    def update_policy_weights_(self, policy):
        pass


@pytest.fixture
def batch(dataset, policy):
    collector = InProcess(dataset.metadata, policy)
    data = next(iter(collector)).clone()
    collector.shutdown()
    return data


def test_steps_that_are_no_decisions_are_refused(policy, batch):
    batch = batch.exclude(("next", "is_executed"))
    with pytest.raises(
        MissingKeyError,
        match=r"expected \('next', 'is_executed'\) of decisions, got only .*make_dec",
    ):
        WorkerRollouts(Repeat(batch), policy).collect(1)


def test_padded_batches_are_refused(policy, batch):
    batch["collector", "mask"] = torch.ones(batch.batch_size, dtype=torch.bool)
    with pytest.raises(ExecutionError, match=r"Leave out the collector's split_trajs"):
        WorkerRollouts(Repeat(batch), policy).collect(1)


def test_workers_one_after_the_other_in_time_are_refused(dataset, policy):
    first, second = (
        next(iter(InProcess(dataset.metadata, policy, seed=seed))) for seed in range(2)
    )
    first["next", "done"][1, -1] = False
    second["collector", "traj_ids"] += 100
    joined = torch.cat([first, second], -1)
    with pytest.raises(
        ExecutionError,
        match=r"episodes that begin where none has ended in a batch \[4, 12\].*'stack'",
    ):
        WorkerRollouts(Repeat(joined), policy).collect(1)


def test_workers_with_the_same_episodes_are_refused(dataset, policy):
    same, again, other = (
        next(iter(InProcess(dataset.metadata, policy, seed=seed))) for seed in (0, 0, 1)
    )
    with pytest.raises(
        ExecutionError,
        match=r"expected 3 workers with episodes of their own, got 2 that differ",
    ):
        WorkerRollouts(Repeat(torch.stack([same, other, again])), policy).collect(1)
    stacked = torch.stack([same, other])
    assert WorkerRollouts(Repeat(stacked), policy).collect(1) is stacked
    compared = torch.stack([same, again])  # a group of one row in each worker
    rollouts = WorkerRollouts(Repeat(compared), policy, group_size=2)
    assert rollouts.collect(1) is compared


def test_a_collector_that_ends_says_so(dataset, policy, tmp_path):
    collector = InProcess(dataset.metadata, policy, batches=2)
    with pytest.raises(
        ExecutionError,
        match=r"expected a batch in iteration 3, got the end of InProcess\. Give it a "
        r"larger total_frames",
    ):
        run(dataset, policy, collector, tmp_path)


def test_a_decision_environment_is_needed_for_rollouts_of_this_process(policy):
    with pytest.raises(ExecutionError, match=r"got TabletopEnv without Scheduled"):
        Rollouts(TransformedEnv(make_env()), policy, 3)


DOCS = (Path(__file__).parents[3] / "docs" / "finetuning.md").read_text()


@pytest.mark.xdist_group("processes")
def test_the_script_of_several_processes_runs_as_it_is(tmp_path):
    section = DOCS.split("## Several processes, several machines")[1].split("\n## ")[0]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    env = make_environment("tabletop", num_envs=4)  # as the script makes it
    demonstrations = tmp_path / "demos"
    dataset = collect(env, env.make_expert(), 8, folder=demonstrations, progress=False)
    policy = make_policy(dataset, chunk_size=4, head="tokens", hidden=16, depth=1)
    space = make_space(dataset.metadata, "tokens")
    save_checkpoint(tmp_path / "runs" / "tabletop-policy", policy, space)
    script = tmp_path / "several_processes.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "after" in done.stdout
    assert (tmp_path / "runs" / "tabletop-ppo" / "comparison.json").exists()
