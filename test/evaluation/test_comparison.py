from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.evaluation import (
    Comparison,
    ComparisonError,
    EpisodeRecord,
    EvaluationResult,
    PairedTable,
    SequentialTable,
    UnpairedTable,
    compare,
    mcnemar_test,
    newcombe_paired_interval,
)

ENVIRONMENT = {"class": "TabletopEnv", "instructions": ["push", "lift"]}


def result(outcomes, first=0, **provenance):
    """Even seeds push, odd ones lift."""
    records = [
        EpisodeRecord(seed, ["push", "lift"][seed % 2], bool(success), 0.0, 5)
        for seed, success in enumerate(outcomes, first)
    ]
    return EvaluationResult(records, {"environment": ENVIRONMENT, **provenance})


GOOD = [1] * 18 + [0] * 2
BAD = [1] * 8 + [0] * 11 + [1]


def test_episodes_are_paired_by_seed_in_whatever_order_they_come():
    a, b = result(GOOD), result(BAD)
    shuffled = list(b.episodes)
    random.Random(0).shuffle(shuffled)
    comparison = compare(a, EvaluationResult(shuffled, b.provenance))
    assert comparison.table == PairedTable(both=8, only_a=10, only_b=1, neither=1)
    assert comparison.b == b
    assert comparison.difference == pytest.approx(0.45)
    assert comparison.interval == newcombe_paired_interval(8, 10, 1, 1)
    assert comparison.p_value == mcnemar_test(10, 1)


def test_each_instruction_has_a_table_of_its_own():
    parts = compare(result(GOOD), result(BAD)).by_instruction()
    assert parts == {
        "lift": PairedTable(both=4, only_a=5, only_b=1, neither=0),
        "push": PairedTable(both=4, only_a=5, only_b=0, neither=1),
    }


def test_the_verdict_is_one_sentence_about_the_better_one():
    sentence = (
        "new is better than old by 45.0 points (95 % interval 15.6 to 65.7, without "
        "zero; McNemar's exact p = 0.012; 20 paired episodes)."
    )
    comparison = compare(result(GOOD), result(BAD), names=("new", "old"))
    assert comparison.verdict == sentence
    # Whichever is named first.
    assert compare(result(BAD), result(GOOD), names=("old", "new")).verdict == sentence


def test_no_verdict_is_given_where_none_is_due():
    a, b = result([1, 1, 1, 0]), result([1, 1, 0, 0])
    comparison = compare(a, b)
    assert not comparison.is_decided
    assert comparison.verdict.startswith(
        "No difference between a and b is shown: a is ahead by 25.0 points (95 %"
    )
    assert "zero included; McNemar's exact p = 1; 4 paired" in comparison.verdict
    equal = compare(a, a).verdict
    assert "is shown: they succeeded equally often (95 %" in equal


def test_interval_and_test_have_to_agree():
    # Five to nothing: Newcombe's interval leaves zero out, McNemar's p is 0.0625.
    comparison = compare(result([1] * 5 + [0]), result([0] * 6))
    assert comparison.excludes_zero
    assert not comparison.is_decided
    assert "without zero; McNemar's exact p = 0.062" in comparison.verdict


def test_an_evaluation_that_its_outcomes_stopped_gets_the_interval_for_it():
    stopped = {"stopping": {"block": 4}}
    comparison = compare(result(GOOD, **stopped), result(BAD, **stopped))
    assert comparison.table == SequentialTable(8, 10, 1, 1)
    assert type(comparison.by_instruction()["push"]) is SequentialTable
    fixed = compare(result(GOOD), result(BAD))
    assert comparison.interval[0] < fixed.interval[0]
    assert "anytime-valid p" in comparison.verdict


def test_other_seeds_are_compared_on_request_only():
    a, b = result(GOOD), result(BAD[:10], first=15)
    message = r"got 5 shared, 15 only in a, 5 only in b\. .*unpaired=True"
    with pytest.raises(ComparisonError, match=message):
        compare(a, b)
    comparison = compare(a, b, unpaired=True)
    assert comparison.table == UnpairedTable(18, 20, 8, 10)
    assert "Fisher's exact p" in comparison.verdict
    assert "20 and 10 episodes)" in comparison.verdict


def test_the_table_has_a_row_for_all_and_one_for_each_instruction():
    lines = str(compare(result(GOOD), result(BAD), names=("new", "old"))).splitlines()
    assert lines[0].startswith("a (new): success 90.0 % [69.9, 97.2] over 20 episodes")
    assert lines[1].startswith("b (old): success 45.0 %")
    assert lines[3].split()[:5] == ["90.0", "%", "45.0", "%", "+45.0"]
    assert lines[3].split()[-5:] == ["8", "10", "1", "1", "(all)"]
    assert lines[4].split()[-5:] == ["4", "5", "1", "0", "lift"]
    assert lines[5].split()[-5:] == ["4", "5", "0", "1", "push"]
    assert lines[6].startswith("new is better than old")
    # The columns stand under their names.
    assert [lines[2].index("a - b") + 5, lines[2].index("only a") + 6] == [
        lines[3].index("+45.0") + 5,
        lines[3].index("10  ") + 2,
    ]


def test_remarks_are_part_of_the_print():
    a = EvaluationResult(result(GOOD).episodes)
    lines = str(compare(a, result(BAD))).splitlines()
    assert lines[-2].startswith("note: a does not say which environment it used")


@pytest.mark.parametrize("unpaired", [False, True])
def test_json_gives_the_comparison_back(tmp_path, unpaired):
    comparison = compare(
        result(GOOD, versions={"torch": "2"}),
        result(BAD, versions={"torch": "2"}),
        names=("new", "old"),
        unpaired=unpaired,
        confidence=0.9,
    )
    payload = json.loads(comparison.to_json())
    assert payload["summary"]["verdict"] == comparison.verdict
    assert payload["summary"]["interval"] == list(comparison.interval)
    assert payload["summary"]["counts"] == comparison.table.counts
    assert payload["a"]["provenance"]["versions"] == {"torch": "2"}
    assert Comparison.from_json(comparison.to_json()) == comparison
    path = tmp_path / "comparison.json"
    path.write_text(comparison.to_json())
    assert Comparison.from_json(path) == comparison


def test_a_summary_that_was_edited_does_not_change_the_comparison():
    payload = json.loads(compare(result(GOOD), result(BAD)).to_json())
    payload["summary"] = {}
    assert Comparison.from_json(json.dumps(payload)).p_value == mcnemar_test(10, 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_swapping_the_policies_turns_the_difference(pairs):
    a, b = (result(outcomes) for outcomes in zip(*pairs))
    one, other = compare(a, b), compare(b, a)
    assert other.difference == -one.difference
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert (other.p_value, other.is_decided) == (one.p_value, one.is_decided)
