from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import (
    EpisodeJournal,
    EpisodeRecord,
    EvaluationResult,
    JournalError,
    Recorder,
    evaluate,
)
from torchrl_vla.schema import ExecutionError, SchemaError

#: A process that evaluates slowly, so that it can be killed in between.
SCRIPT = """
import sys, time, torch
from tensordict.nn import TensorDictModule
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate

class Slow(TensorDictModule):
    def forward(self, tensordict):
        time.sleep(float(sys.argv[3]))
        return super().forward(tensordict)

env = TabletopEnv(2, image_size=16)
policy = Slow(lambda seed: torch.ones(2, 2), ["episode_seed"], ["action"])
result = evaluate(env, policy, 6, journal=sys.argv[1], progress=False)
open(sys.argv[2], "w").write(result.to_json())
"""


def run(journal, episodes=4, num_envs=2, policy=None, steps=None, **options):
    env = TabletopEnv(num_envs, image_size=16)
    policy = env.make_expert() if policy is None else policy
    if steps is not None:
        policy = Interrupted(policy, steps)
    options = {"journal": journal, "progress": False, **options}
    return evaluate(env, policy, episodes, **options)


class Interrupted(TensorDictModuleBase):
    """Act as a policy does, until Ctrl-C after some steps."""

    def __init__(self, policy, steps):
        super().__init__()
        self.policy, self.left = policy, steps
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.policy(tensordict)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(*arguments):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)])


def test_an_evaluation_that_was_killed_goes_on_and_gives_the_file_of_one_run(tmp_path):
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    process = start(killed, tmp_path / "never.json", 0.02)
    deadline = time.monotonic() + 120
    while not killed.exists() or len(killed.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(lines(killed)) - 1
    assert 2 <= finished < 6
    assert not (tmp_path / "never.json").exists()
    assert start(killed, tmp_path / "resumed.json", 0).wait() == 0
    assert start(whole, tmp_path / "whole.json", 0).wait() == 0
    assert (tmp_path / "resumed.json").read_text() == (
        tmp_path / "whole.json"
    ).read_text()
    assert len(lines(killed)) == 1 + 6


def test_finished_episodes_are_not_run_again(tmp_path):
    journal = tmp_path / "episodes.jsonl"
    whole = run(journal)

    def never(seed):
        raise AssertionError("it was called")

    still = TensorDictModule(never, ["episode_seed"], ["action"])
    # A policy without weights has the same hash as the expert.
    assert run(journal, policy=still) == whole
    assert run(journal, policy=still, num_envs=3).episodes == whole.episodes


def test_a_half_line_of_a_killed_process_is_dropped(tmp_path):
    journal = tmp_path / "episodes.jsonl"
    whole = run(journal)
    content = journal.read_bytes()
    journal.write_bytes(content[:-9])
    assert run(journal) == whole
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())


def test_ctrl_c_says_what_is_kept(tmp_path):
    journal = tmp_path / "episodes.jsonl"
    whole = run(tmp_path / "other.jsonl", num_envs=1)
    steps = whole.episodes[0].length + whole.episodes[1].length
    with pytest.raises(KeyboardInterrupt, match=r"interrupted\. 2 of 4 episodes are"):
        run(journal, num_envs=1, steps=steps + 1)
    assert [line["index"] for line in lines(journal)[1:]] == [0, 1]
    assert run(journal, num_envs=1) == whole


def test_without_a_journal_ctrl_c_is_raised_as_it_is():
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(None, num_envs=1, steps=1)


def test_an_episode_that_takes_too_long_leaves_the_others(tmp_path):
    journal = tmp_path / "episodes.jsonl"
    lengths = [episode.length for episode in run(None, 8, 1).episodes]
    limit = lengths[0]
    late = next(i for i, length in enumerate(lengths) if length > limit)
    with pytest.raises(ExecutionError, match=f"max_steps={limit}.* {late} of 8 epis"):
        run(journal, 8, 1, max_steps=limit)
    assert len(lines(journal)) == 1 + late


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "got seed 0 there and 1 here"),
        ({"episodes": 5}, "got episodes 4 there and 5 here"),
        ({"shard": (1, 2)}, "got shard None there and "),
        ({"on_error": "raise"}, "on_error 'failure' there and 'raise' here"),
        ({"provenance": {"policy": {"sha256": "2"}}}, "policy.sha256 '1' there and"),
    ],
)
def test_another_policy_or_setting_is_refused(tmp_path, options, message):
    about = {"provenance": {"policy": {"sha256": "1"}}}
    journal = tmp_path / "episodes.jsonl"
    run(journal, **about)
    with pytest.raises(JournalError, match=message) as error:
        run(journal, **{**about, **options})
    assert "Give the same settings to go on, delete the file to start anew" in str(
        error.value
    )


def test_other_weights_are_another_policy(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(2, 2)
        act = lambda state: layer(state[..., :2]).tanh()  # noqa: E731
        policy = TensorDictModule(act, [("observation", "state")], ["action"])
        policy.layer = layer
        return policy

    journal = tmp_path / "episodes.jsonl"
    run(journal, policy=make(0))
    assert run(journal, policy=make(0))
    with pytest.raises(
        JournalError, match=r"got policy '\w+\.\.\. there and '\w+\.\.\. here"
    ):
        run(journal, policy=make(1))


def test_what_changes_no_episode_may_change(tmp_path):
    path, record = tmp_path / "a.jsonl", EpisodeRecord(7, "é\u2028", True, 1.0, 5)
    settings = {"num_envs": 4, "command": {"json": "a", "env": {"num_workers": 0}}}
    with EpisodeJournal(path, {"seed": 0, **settings}) as journal:
        journal.add(2, record)
    with EpisodeJournal(path, {"seed": 0, "command": {"env": {}}}) as journal:
        assert journal.records == {2: record}


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "episodes.jsonl"
    run(path)
    content = path.read_text().splitlines()
    path.write_text("\n".join([*content[:2], "no json", *content[2:], ""]))
    with pytest.raises(SchemaError, match=r"line 3.*to start anew"):
        run(path)


def test_recorded_episodes_are_run_again_to_be_seen(tmp_path):
    journal = tmp_path / "episodes.jsonl"
    first, again = Recorder([1, 3]), Recorder([1, 3])
    whole = run(journal, recorder=first)
    assert run(journal, recorder=again) == whole
    assert first.indices == (1, 3)
    for one, other, index in zip(first.videos, again.videos, (1, 3), strict=True):
        assert torch.equal(one, other)
        assert len(one) == whole.episodes[index].length


def test_an_error_is_kept_with_its_episode(tmp_path):
    journal = tmp_path / "episodes.jsonl"

    def act(seed):
        action = torch.zeros(1, 2)
        return action / 0 if seed == 2**29 + 1 else action

    policy = TensorDictModule(act, ["episode_seed"], ["action"])
    with pytest.warns(UserWarning, match="1 of 3 episodes ended in an error"):
        result = run(journal, 3, 1, policy=policy, on_error="apart")
    assert [episode.seed for episode in result.apart] == [2**29 + 1]
    resumed = run(journal, 3, 1, policy=policy, on_error="apart")
    assert resumed.to_json() == result.to_json()
    assert EvaluationResult.from_json(resumed.to_json()) == result
