"""Evaluations in which episodes end in an error, or are solved before they begin."""

from __future__ import annotations

import os
import sys

import cloudpickle
import gymnasium
import pytest
import torch
from point_robot import (
    Diverges,
    Point,
    act_by,
    make_point,
    stand_still,
    towards,
)
from torch import nn

from torchrl_vla.envs import SimulatorOptions, TabletopEnv
from torchrl_vla.errors import ArgumentTypeError
from torchrl_vla.evaluation import (
    EvaluationResult,
    compare,
    compare_policies,
    evaluate,
    evaluate_until,
)
from torchrl_vla.schema import SchemaError

# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules["point_robot"])
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run(env, policy, episodes=40, **options):
    return evaluate(env, policy, episodes, progress=False, **options)


@pytest.fixture(scope="module")
def with_failures():
    with pytest.warns(UserWarning, match=r"of 40 episodes ended in an error and count"):
        return run(make_point(Diverges), act_by(towards))


def test_one_diverging_episode_costs_no_other(with_failures):
    result = with_failures
    assert len(result) == 40
    assert 0 < len(result.failed) < 8
    for episode in result.failed:
        assert not episode.success
        assert "finite numbers at ('observation', 'state')" in episode.error
        assert 0 < episode.length <= 4
    assert result.successes == 40 - len(result.failed)
    assert result.provenance["on_error"] == "failure"


def test_the_result_says_what_its_rate_counts(with_failures):
    count = len(with_failures.failed)
    note = f"note: {count} of 40 episodes ended in an error and count as failures; seed"
    assert note in str(with_failures)
    assert EvaluationResult.from_json(with_failures.to_json()) == with_failures


def test_the_failed_episodes_do_not_depend_on_how_many_run_side_by_side(with_failures):
    for num_envs in (1, 16):
        env = make_point(Diverges, num_envs)
        with pytest.warns(UserWarning, match="ended in an error"):
            again = run(env, act_by(towards))
        assert [(e.seed, e.success, e.length) for e in again.episodes] == [
            (e.seed, e.success, e.length) for e in with_failures.episodes
        ]


def test_failed_episodes_can_be_kept_out_of_the_rate(with_failures):
    with pytest.warns(UserWarning, match="ended in an error and are apart"):
        result = run(make_point(Diverges), act_by(towards), on_error="apart")
    assert result.success_rate == 1.0
    assert len(result) + len(result.apart) == 40
    assert [e.seed for e in result.apart] == [e.seed for e in with_failures.failed]
    assert "of 40 episodes ended in an error and are not in the rate" in str(result)
    assert EvaluationResult.from_json(result.to_json()) == result


def test_the_first_error_can_be_raised():
    with pytest.raises(SchemaError, match="The simulation diverged"):
        run(make_point(Diverges), act_by(towards), on_error="raise")
    with pytest.raises(ValueError, match=r"expected on_error of .* got 'ignore'"):
        run(make_point(), act_by(towards), on_error="ignore")


def test_a_pair_without_both_outcomes_is_left_out(with_failures):
    with pytest.warns(UserWarning, match="ended in an error"):
        apart = run(make_point(Diverges), act_by(towards), on_error="apart")
    whole = run(make_point(), stand_still())
    comparison = compare(apart, whole, names=("new", "old"))
    assert len(comparison.b) == len(comparison.a) == len(apart)
    assert any("new: " in remark for remark in comparison.remarks)
    assert type(comparison).from_json(comparison.to_json()) == comparison
    counted = compare(with_failures, whole)
    assert len(counted.a) == 40


def test_evaluations_in_blocks_keep_what_was_finished():
    with pytest.warns(UserWarning, match="ended in an error"):
        result = evaluate_until(
            make_point(Diverges),
            act_by(towards),
            40,
            width=0.01,
            block=10,
            on_error="apart",
            progress=False,
        )
    assert len(result) + len(result.apart) == 40


class DiesOnce(Point):
    """Ends its process in about one episode of twenty."""

    def step(self, action):
        if self.t == 3 and self.goal[0] > 0.9:
            os._exit(1)
        return super().step(action)


def test_a_worker_that_dies_costs_no_other_episode(with_failures):
    env = make_point(DiesOnce, 4, options=SimulatorOptions(num_workers=2))
    with pytest.warns(UserWarning, match="ended in an error"):
        result = run(env, act_by(towards))
    env.close()
    assert [e.seed for e in result.failed] == [e.seed for e in with_failures.failed]
    assert result.successes == 40 - len(result.failed)
    assert "worker process" in result.failed[0].error


def test_an_error_in_every_episode_is_raised():
    class Breaks(Point):
        def step(self, action):
            raise OverflowError("no such joint")

    with pytest.raises(Exception, match="no such joint"):
        run(make_point(Breaks), stand_still())


class SolvedAtReset(Point):
    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, {"success": bool(self.goal[0] > 0)}


def test_a_task_that_is_solved_at_its_reset_counts_and_is_remarked():
    result = run(make_point(SolvedAtReset), stand_still())
    solved = [episode for episode in result.episodes if episode.solved_at_reset]
    assert 0 < len(solved) < 40
    assert all(episode.success for episode in solved)
    assert result.successes == len(solved)
    assert f"note: {len(solved)} of 40 episodes were solved at their reset" in str(
        result
    )
    assert EvaluationResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("value", [0.02, 2, float("nan"), "False", {"subtask": False}])
def test_a_score_is_never_a_success(value):
    class Scores(Point):
        def info(self, distance):
            return {"success": value}

    with pytest.raises(SchemaError, match="a bool, 0 or 1 at success"):
        run(make_point(Scores), stand_still(), 4)


def test_a_score_can_be_declared():
    class Scores(Point):
        def info(self, distance):
            return {"score": float(distance < 0.1)}

    env = make_point(
        Scores, success=lambda obs, reward, terminated, info: info["score"] == 1
    )
    assert run(env, act_by(towards), 8).success_rate == 1.0


class Chunks(nn.Module):
    def forward(self, tensordict):
        return torch.zeros(1, 2, 4)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda td: td, r"'policy', got function\. Wrap it: TensorDictModule\("),
        (Chunks(), r"Chunks\. Wrap it: MultiStepActorWrapper\(as_policy\(module\)\)"),
        ({"action": [0.0]}, r"at argument 'policy', got dict"),
        ("runs/reach", r"at argument 'policy', got str"),
        (Chunks, r"at argument 'policy', got .*Chunks"),
        (None, r"at argument 'policy', got NoneType"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_fix(policy, message):
    env = TabletopEnv(2, image_size=8)
    for name, call in {
        "evaluate": lambda: evaluate(env, policy, 2),
        "compare_policies": lambda: compare_policies(env, policy, policy, 2),
        "evaluate_until": lambda: evaluate_until(env, policy, 2, width=0.5),
    }.items():
        with pytest.raises(ArgumentTypeError, match=f"^{name}: .*{message}"):
            call()


@pytest.mark.parametrize(
    "env", [Point(), gymnasium.vector.SyncVectorEnv([Point]), Point, "tabletop", None]
)
def test_what_is_no_environment_is_refused_with_the_fix(env):
    with pytest.raises(ArgumentTypeError, match=r"'env', got .*GymnasiumEnv\(make_env"):
        evaluate(env, stand_still(), 2)
    with pytest.raises(ArgumentTypeError, match=r"^compare_policies: "):
        compare_policies(env, stand_still(), stand_still(), 2)


def test_a_chunk_policy_is_sent_to_its_executor_by_name_of_the_function():
    chunks = act_by(lambda state: torch.zeros(len(state), 2, 4), "action_chunk")
    with pytest.raises(KeyError, match=r"^evaluate: .*wrap it in MultiStepActorW"):
        run(make_point(), chunks, 2)
