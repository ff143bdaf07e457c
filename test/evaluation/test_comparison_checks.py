from __future__ import annotations

import pytest

from torchrl_vla.evaluation import (
    ComparisonError,
    EpisodeRecord,
    EvaluationResult,
    compare,
)
from torchrl_vla.schema import VLAError

HERE = {"environment": {"class": "TabletopEnv", "max_steps": 40}}


def result(seeds=(0, 1, 2), instruction="push", **provenance):
    records = [EpisodeRecord(seed, instruction, True, 0.0, 5) for seed in seeds]
    return EvaluationResult(records, {**HERE, **provenance})


def refuses(message, a, b, **options):
    with pytest.raises(ComparisonError, match=message):
        compare(a, b, names=("new", "old"), **options)


@pytest.mark.parametrize("unpaired", [False, True])
def test_another_environment_is_refused_paired_or_not(unpaired):
    other = result(environment={"class": "MetaWorldEnv", "max_steps": 200})
    message = (
        r"expected new and old from the same environment, got class 'TabletopEnv' and "
        r"'MetaWorldEnv'; max_steps 40 and 200\. Evaluate both in one\."
    )
    refuses(message, result(), other, unpaired=unpaired)


def test_a_mode_and_samples_are_refused():
    message = r"same deterministic, got True for new and False for old"
    refuses(message, result(deterministic=True), result(deterministic=False))


def test_what_an_old_file_does_not_say_is_not_compared_but_remarked():
    old = EvaluationResult(result().episodes, {"seed": 0})
    comparison = compare(result(deterministic=True), old, names=("new", "old"))
    assert comparison.remarks == [
        "old does not say which environment it used; that it is the same one is taken "
        "on trust."
    ]


def test_a_seed_that_occurs_twice_is_refused():
    message = r"every seed once, got 1, 2, 3 and 1 more more than once in old"
    refuses(message, result(), result((0, 1, 1, 2, 2, 3, 3, 4, 4)))


def test_other_seeds_are_counted_and_refused():
    message = r"expected the same seeds, got 2 shared, 1 only in new, 0 only in old\."
    refuses(message, result((0, 1, 2)), result((0, 1)))
    refuses(r"0 shared, 3 only in new, 1 only in old", result(), result((9,)))


def test_another_instruction_for_a_seed_is_refused():
    message = (
        r"got 3 of 3 that differ, seed 0: 'push' in new and 'lift' in old\. .*"
        r"evaluate both with the same tasks"
    )
    refuses(message, result(), result(instruction="lift"))


def test_our_errors_are_caught_as_such():
    assert issubclass(ComparisonError, VLAError)
    assert issubclass(ComparisonError, ValueError)


def test_other_versions_are_remarked():
    a = result(versions={"torch": "2.12", "torchrl": "0.14"})
    b = result(versions={"torch": "2.13", "torchrl": "0.14", "mujoco": "3.3"})
    assert compare(a, b).remarks == [
        "the versions differ: mujoco None and 3.3, torch 2.12 and 2.13."
    ]


def test_one_policy_against_itself_is_remarked_unless_it_is_an_ablation():
    same = {"policy": {"sha256": "abc"}}
    (remark,) = compare(result(**same), result(**same)).remarks
    assert remark == "both are the same policy, by the hash of its files."
    ablated = result(**same, ablation="zero-state")
    assert compare(result(**same), ablated).remarks == []


def test_other_mixtures_of_tasks_are_remarked_where_nothing_is_paired():
    a, b = result(), result((7, 8), "lift")
    (remark,) = compare(a, b, unpaired=True).remarks
    assert remark.startswith(
        "2 instructions were given to one policy only, such as 'lift', 'push'"
    )
    assert compare(a, b, unpaired=True).by_instruction() == {}


def test_a_stop_that_independent_intervals_do_not_know_of_is_remarked():
    (remark,) = compare(result(stopping={}), result((8, 9)), unpaired=True).remarks
    assert "stopped by its own outcomes" in remark


def test_a_long_list_of_instructions_is_cut_in_the_message():
    many = result(environment={"instructions": [f"task {i}" for i in range(90)]})
    few = result(environment={"instructions": ["task 0"]})
    message = r"got instructions \['task 0', 'task 1', .*\.\.\. and \['task 0'\]\. Eval"
    refuses(message, many, few)
    with pytest.raises(ComparisonError) as caught:
        compare(many, few)
    assert len(str(caught.value)) < 300
