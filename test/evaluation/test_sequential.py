from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla.evaluation import (
    EvaluationResult,
    SequentialTable,
    compare,
    compare_policies,
    evaluate,
    evaluate_until,
    rate_confidence_sequence,
    wilson_interval,
)
from torchrl_vla.rollout import episode_seeds


class OneStep(EnvBase):
    """An episode is one step, and a positive action succeeds."""

    def __init__(self, num_envs):
        super().__init__(batch_size=[num_envs])
        flag = Binary(shape=(num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(
            episode_seed=Unbounded((num_envs,), dtype=torch.int64),
            success=flag,
            shape=(num_envs,),
        )
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, 1))
        self.reward_spec = Unbounded((num_envs, 1))
        self.full_done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), shape=(num_envs,)
        )
        self.seeds = torch.zeros(num_envs, dtype=torch.int64)

    def _set_seed(self, seed):
        pass

    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        begins = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None and tensordict.get("_reset", None) is not None:
            begins = tensordict["_reset"].view(self.batch_size)
        self.seeds = torch.where(begins, episode_seeds, self.seeds)
        return self._observe(torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        out = self._observe(tensordict["action"] > 0)
        out["reward"] = out["success"].float()
        out["terminated"] = torch.ones_like(out["success"])
        out["done"] = out["terminated"].clone()
        return out

    def _observe(self, success):
        return TensorDict(
            episode_seed=self.seeds, success=success, batch_size=self.batch_size
        )


def policy(rate, salt=0):
    """Succeed in this share of the episodes, always in the same ones."""

    def act(seeds):
        draws = [random.Random(f"{salt} {s}").random() for s in seeds.tolist()]
        return torch.tensor([[1.0 if x < rate else -1.0] for x in draws])

    return TensorDictModule(act, ["episode_seed"], ["action"])


def until(rate, max_episodes=400, num_envs=8, **options):
    options = {"block": 16, "progress": False, **options}
    return evaluate_until(OneStep(num_envs), policy(rate), max_episodes, **options)


def test_the_evaluation_stops_at_the_first_look_at_which_the_target_is_decided():
    result = until(0.95, target=0.7)
    assert len(result) % 16 == 0
    assert len(result) < 400
    low, _ = rate_confidence_sequence(result.successes, len(result))
    assert low > 0.7
    before = result.episodes[: len(result) - 16]
    low, high = rate_confidence_sequence(sum(e.success for e in before), len(before))
    assert low <= 0.7 <= high


def test_the_evaluation_stops_when_the_interval_is_narrow_enough():
    result = until(0.5, width=0.3)
    low, high = result.interval
    assert high - low <= 0.3
    before = result.episodes[: len(result) - 16]
    low, high = rate_confidence_sequence(sum(e.success for e in before), len(before))
    assert high - low > 0.3


def test_what_is_not_decided_ends_at_the_most_episodes_exactly():
    assert len(until(0.5, 50, target=0.5)) == 50


def test_the_episodes_are_those_of_a_plain_evaluation():
    result = until(0.5, 40, target=0.5, seed=3, num_envs=5)
    plain = evaluate(OneStep(8), policy(0.5), 40, seed=3, progress=False)
    assert result.episodes == plain.episodes
    assert [episode.seed for episode in result.episodes] == episode_seeds(
        3, 40, "evaluation"
    )


def test_the_result_says_that_it_was_stopped_and_has_the_wider_interval():
    result = until(0.9, 64, target=0.85, provenance={"policy": "p"})
    assert result.provenance["stopping"] == {
        "target": 0.85,
        "width": None,
        "block": 16,
        "max_episodes": 64,
        "confidence": 0.95,
    }
    assert result.provenance["policy"] == "p"
    assert result.interval[0] < wilson_interval(result.successes, len(result))[0]
    assert EvaluationResult.from_json(result.to_json()) == result


def test_a_clear_difference_is_shown_in_few_episodes():
    comparison = compare_policies(
        OneStep(8), policy(0.9, 1), policy(0.2, 2), 400, block=16, progress=False
    )
    assert comparison.is_decided
    assert comparison.difference > 0
    assert len(comparison.a) == len(comparison.b) <= 48
    assert type(comparison.table) is SequentialTable
    # Later, from the files, the intervals still allow for the stop.
    again = compare(comparison.a, comparison.b)
    assert again.interval == comparison.interval


def test_one_policy_against_itself_runs_to_the_end():
    one = policy(0.5)
    comparison = compare_policies(OneStep(4), one, one, 40, block=16, progress=False)
    assert len(comparison.a) == 40
    assert (comparison.p_value, comparison.is_decided) == (1.0, False)


def test_policies_that_hardly_differ_stop_at_the_margin():
    one = policy(0.5)
    options = {"block": 16, "progress": False}
    comparison = compare_policies(OneStep(8), one, one, 400, margin=0.1, **options)
    assert not comparison.is_decided
    assert max(map(abs, comparison.interval)) <= 0.1
    assert len(comparison.a) < 400


@cache
def p_value(only_a, only_b):
    return SequentialTable(0, only_a, only_b, 1).p_value


def stop(rate_a, rate_b, draw, most=320, block=16):
    """Return how many episodes were run, and whether one was called better."""
    only_a = only_b = 0
    for n in range(1, most + 1):
        success_a, success_b = draw.random() < rate_a, draw.random() < rate_b
        only_a += success_a and not success_b
        only_b += success_b and not success_a
        if n % block == 0 and p_value(only_a, only_b) <= 0.05:
            return n, True
    return most, False


def test_equal_policies_are_told_apart_no_more_often_than_promised():
    draw = random.Random(0)
    runs = 1500
    wrong = sum(stop(0.5, 0.5, draw)[1] for _ in range(runs))
    # 5 % of 1500 are 75; three standard deviations of a binomial are 25.
    assert wrong <= 75 + 25
    assert wrong > 0


def test_a_strong_difference_saves_most_of_the_episodes():
    draw = random.Random(1)
    ends = [stop(0.9, 0.5, draw) for _ in range(300)]
    assert all(is_decided for _, is_decided in ends)
    assert sum(n for n, _ in ends) / len(ends) < 320 / 4


def test_the_progress_bar_ends_where_the_evaluation_does(capsys):
    result = evaluate_until(OneStep(8), policy(1.0), 400, target=0.5, block=8)
    last = capsys.readouterr().err.split("\r")[-1]
    assert f"{len(result)}/400" in last
    assert "success=100 %" in last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected a target or a width, got neither\. .* use evaluate"),
        ({"target": 70}, r"evaluate_until: expected target in \(0, 1\), got 70"),
        ({"width": 0.0}, r"evaluate_until: expected width in \(0, 1\), got 0\.0"),
        ({"target": 0.5, "block": 0}, r"expected block >= 1, got 0"),
        ({"target": 0.5, "max_episodes": 0}, r"expected max_episodes >= 1, got 0"),
        ({"target": 0.5, "confidence": 1}, r"evaluate_until: .*\(0, 1\), got 1"),
    ],
)
def test_a_rule_that_stops_never_or_at_once_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        until(0.5, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 5}, r"compare_policies: expected margin in \(0, 1\), got 5"),
        ({"block": 0}, r"compare_policies: expected block >= 1, got 0"),
        ({"confidence": 0}, r"compare_policies: .*confidence in \(0, 1\), got 0"),
    ],
)
def test_a_comparison_that_cannot_stop_rightly_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare_policies(OneStep(2), policy(0.5), policy(0.5), 10, **options)
