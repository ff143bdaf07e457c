from __future__ import annotations

import json

import pytest

from torchrl_vla.evaluation import (
    EpisodeRecord,
    EvaluationResult,
    rate_confidence_sequence,
    wilson_interval,
)

RECORDS = [
    EpisodeRecord(5, "push", True, 2.0, 10),
    EpisodeRecord(6, "lift", False, 0.0, 40),
    EpisodeRecord(7, "push", True, 1.5, 20),
    EpisodeRecord(8, "push", False, 0.5, 30),
]


def test_the_rate_is_successes_over_episodes():
    result = EvaluationResult(RECORDS)
    assert (result.successes, len(result)) == (2, 4)
    assert result.success_rate == 0.5
    assert result.interval == wilson_interval(2, 4)
    assert result.mean_length == 25.0


def test_each_instruction_has_its_own_result():
    parts = EvaluationResult(RECORDS, {"seed": 5}).by_instruction()
    assert list(parts) == ["lift", "push"]
    assert parts["push"].episodes == (RECORDS[0], RECORDS[2], RECORDS[3])
    assert parts["lift"].success_rate == 0.0
    assert parts["push"].provenance == {"seed": 5}


def test_json_holds_every_episode_and_gives_the_result_back(tmp_path):
    result = EvaluationResult(RECORDS, {"seed": 5, "versions": {"torch": "2"}})
    payload = json.loads(result.to_json())
    assert payload["summary"] == {
        "success_rate": 0.5,
        "interval_95": list(wilson_interval(2, 4)),
        "episodes": 4,
    }
    assert payload["episodes"][1] == {
        "seed": 6,
        "instruction": "lift",
        "success": False,
        "episode_return": 0.0,
        "length": 40,
    }
    assert EvaluationResult.from_json(result.to_json()) == result
    path = tmp_path / "result.json"
    path.write_text(result.to_json())
    assert EvaluationResult.from_json(path) == result


def test_a_summary_that_was_edited_does_not_change_the_result():
    payload = json.loads(EvaluationResult(RECORDS).to_json())
    payload["summary"]["success_rate"] = 1.0
    assert EvaluationResult.from_json(json.dumps(payload)).success_rate == 0.5


def test_the_table_shows_rate_and_interval_of_each_instruction():
    lines = str(EvaluationResult(RECORDS)).splitlines()
    assert lines[0] == "success 50.0 % [15.0, 85.0] over 4 episodes"
    assert lines[2].split() == ["0.0", "%", "1", "0.0", "to", "79.3", "40.0", "lift"]
    assert lines[3].split()[:3] == ["66.7", "%", "3"]


def test_no_episode_is_no_result():
    with pytest.raises(ValueError, match="expected at least one episode, got 0"):
        EvaluationResult([])


def test_a_result_that_its_outcomes_stopped_has_the_interval_for_it():
    result = EvaluationResult(RECORDS, {"stopping": {"block": 2}})
    assert result.stopped_early
    assert result.interval == rate_confidence_sequence(2, 4)
    assert result.by_instruction()["lift"].interval == rate_confidence_sequence(0, 1)
    assert not EvaluationResult(RECORDS).stopped_early


def test_more_can_be_said_of_where_a_result_comes_from():
    result = EvaluationResult(RECORDS, {"seed": 5})
    more = result.with_provenance(policy="p", seed=6)
    assert more.provenance == {"seed": 6, "policy": "p"}
    assert more.episodes == result.episodes
    assert result.provenance == {"seed": 5}


def test_a_file_without_provenance_is_still_read():
    payload = json.loads(EvaluationResult(RECORDS).to_json())
    del payload["provenance"]
    assert EvaluationResult.from_json(json.dumps(payload)).provenance == {}
