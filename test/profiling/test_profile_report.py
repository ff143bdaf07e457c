from __future__ import annotations

import csv
import json

import pytest
from fake_profiles import make_row

from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling.profile_report import (
    read_rows,
    snapshot_table,
    tabulate_rows,
    write_profile_report,
)

TIMES = (0.010, 0.011, 0.012, 0.008, 0.009)
OUTPUTS = ("a", "a", "b", "b", "b")


@pytest.fixture
def rows():
    made = [
        make_row(number, forward, output)
        for number, (forward, output) in enumerate(zip(TIMES, OUTPUTS, strict=True))
    ]
    made[4]["step_timing_summary"]["environment"]["torch"] = "3.0"
    made[4]["deterministic_forward"]["environment"] = {
        **made[0]["deterministic_forward"]["environment"],
        "torch": "3.0",
    }
    return made


def test_five_rows_become_time_series_with_a_mark_where_numbers_changed(rows, tmp_path):
    path = write_profile_report(rows, tmp_path / "report.html")
    text = path.read_text()
    assert text.count("stroke-dasharray") == 3  # one mark in each phase's chart
    assert text.count("<polyline") == 3  # no backward nor optimizer in these rows
    assert "numerics changed</b> at 2222222222 (2026-01-03" in text
    with path.with_suffix(".csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["forward_ms_median"]) for line in lines] == pytest.approx(
        [1e3 * time for time in TIMES]
    )
    assert [float(line["forward_ms_p95"]) for line in lines] == pytest.approx(
        [1e3 * 1.01 * time for time in TIMES]
    )
    assert [float(line["total_update_ms_median"]) for line in lines] == pytest.approx(
        [3e3 * time for time in TIMES]
    )
    assert [line["numerics"] for line in lines] == [
        *("", "identical", "changed", "identical", "not comparable")
    ]
    assert {line["peak_memory_mb"] for line in lines} == {"300.0"}


def test_a_failed_row_has_no_numbers_and_is_no_reference(rows):
    rows[1] |= {
        "status": "failed",
        "step_timing_summary": {},
        "deterministic_forward": {},
    }
    lines = tabulate_rows(rows[:3])
    assert [line["numerics"] for line in lines] == ["", "", "changed"]
    assert lines[1]["forward_ms_median"] is None


def test_the_snapshot_has_batch_update_and_memory_of_the_newest_row(rows):
    other = make_row(0, 0.1, policy="other")
    table = snapshot_table([*rows, other]).splitlines()
    assert table[0] == "| policy | batch | update (ms) | peak memory (MB) |"
    assert table[2:] == ["| fake | 4 | 27.0 | 300.0 |", "| other | 4 | 300.0 | 300.0 |"]


def test_rows_are_found_in_runs_and_in_a_results_repository(rows, tmp_path):
    for number, row in enumerate(reversed(rows[:2])):
        folder = tmp_path / ("fake/run" if number else "rows/fake")
        folder.mkdir(parents=True)
        name = "profiling_row.json" if number else "run.json"
        (folder / name).write_text(json.dumps(row))
    found = read_rows(tmp_path)
    assert [row["git_commit"][0] for row in found] == ["0", "1"]
    with pytest.raises(SchemaError, match=r"expected profiling_row.json or rows"):
        read_rows(tmp_path / "rows" / "fake")
