from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.evaluation import (
    ComparisonError,
    EpisodeRecord,
    EvaluationResult,
    regression_gate,
)
from torchrl_vla.evaluation.regression_gate import ALL, holm


def result(first=0, **tasks):
    """Return an evaluation; a task is a string of 1 for success and 0 for failure."""
    records, seed = [], first
    for task, outcomes in tasks.items():
        for outcome in outcomes:
            records.append(EpisodeRecord(seed, task, outcome == "1", 0.0, 5))
            seed += 1
    return EvaluationResult(records, {"environment": {"class": "Table"}})


def verdicts(candidate, baseline, **options):
    gate = regression_gate(candidate, baseline, **options)
    return {task: about.verdict for task, about in gate.tasks.items()}


def test_each_verdict_with_its_numbers_worked_out():
    # 40 pairs a task; McNemar's exact p of k lost and 0 won is 2 / 2**k
    old = result(
        worse="1" * 40, better="0" * 12 + "1" * 28, same="1" * 40, few="1" * 36 + "0000"
    )
    new = result(
        worse="0" * 11 + "1" * 29,
        better="1" * 40,
        same="1" * 40,
        few="1" * 33 + "0" * 7,
    )
    gate = regression_gate(new, old, margin=0.1)
    assert {task: about.verdict for task, about in gate.tasks.items()} == {
        "better": "improved",
        "few": "underpowered",  # 3 lost: p = 0.25
        "same": "held",
        "worse": "regressed",
        ALL: "held",  # 14 lost, 12 won of 160
    }
    # Holm over five rows: better is the smallest, worse the second
    assert gate.tasks["better"].p_value == 5 * 2 / 2**12
    assert gate.tasks["worse"].p_value == 4 * 2 / 2**11
    assert gate.tasks["few"].p_value == 3 * 2 / 2**3
    assert gate.tasks["worse"].difference == -11 / 40
    assert gate.having("regressed") == ["worse"]
    assert not gate.passes()
    text = str(gate)
    assert text.endswith("tasks: 1 improved, 1 held, 1 regressed, 1 underpowered")
    assert json.loads(gate.to_json())["tasks"]["same"]["verdict"] == "held"


def test_many_tasks_need_more_evidence_each():
    # 6 lost of 30: p = 2 / 2**6 = 0.031 is enough alone, and not as one of 21 rows
    old, new = "1" * 30, "0" * 6 + "1" * 24
    assert verdicts(result(a=new), result(a=old)) == {"a": "regressed"}
    others = {f"t{i}": "1" * 30 for i in range(20)}
    found = verdicts(result(a=new, **others), result(a=old, **others))
    assert found["a"] == "underpowered"


def test_the_margin_decides_what_held():
    # no discordant pair of 50, all solved: Newcombe's interval ends at -0.071
    same = result(a="1" * 50)
    assert verdicts(same, same, margin=0.08) == {"a": "held"}
    assert verdicts(same, same, margin=0.07) == {"a": "underpowered"}


def test_a_proven_loss_within_the_margin_held():
    # 8 of 400 lost: p = 2 / 2**8, the interval ends at about -0.04
    old, new = result(a="1" * 400), result(a="0" * 8 + "1" * 392)
    assert verdicts(new, old, margin=0.05) == {"a": "held"}
    assert verdicts(new, old, margin=0.02) == {"a": "regressed"}


def test_other_seeds_are_compared_without_pairs():
    old = result(a="1" * 20 + "0" * 20)
    gate = regression_gate(result(1000, a="0" * 20 + "1" * 20), old)
    assert not gate.tasks["a"].is_paired
    assert gate.tasks["a"].p_value == 1.0
    assert "(other episodes)" in str(gate)
    assert regression_gate(old, old).tasks["a"].is_paired


def test_too_few_episodes_fail_the_gate_where_that_is_asked_for():
    one = result(a="1" * 5)
    gate = regression_gate(one, one)
    assert gate.having("underpowered") == ["a"]
    assert gate.passes()
    assert not gate.passes(with_underpowered=False)


def test_other_tasks_or_environments_are_refused():
    with pytest.raises(ComparisonError, match=r"2 in one of them alone, such as 'a'"):
        regression_gate(result(a="1"), result(b="1"))
    other = result(a="1").with_provenance(environment={"class": "Arm"})
    with pytest.raises(ComparisonError, match="from the same environment"):
        regression_gate(result(a="1"), other)


@pytest.mark.parametrize("option", [{"margin": 5.0}, {"confidence": 95}])
def test_percent_are_refused(option):
    with pytest.raises(ComparisonError, match=r"in \(0, 1\), got (5\.0|95)"):
        regression_gate(result(a="1"), result(a="1"), **option)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected, left = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
        while left and p_values[left[0]] * len(left) <= alpha:
            rejected.add(left.pop(0))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
