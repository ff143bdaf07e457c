from __future__ import annotations

import json

import pytest
import torch
from robot_runs import MemoryWriter, make_run

from torchrl_vla.runtime import (
    BackgroundRecorder,
    ContinuousRecording,
    RunReport,
    run_strategy,
)


@pytest.fixture
def report():
    run, _ = make_run(
        duration_s=3.0,
        script=lambda call: torch.full((2,), 5.0 if call in (7, 8) else 0.1),
    )
    recorder = BackgroundRecorder(MemoryWriter())
    run_strategy(ContinuousRecording(recorder, 1.0), run)
    return RunReport(run, recorder)


def test_the_numbers_are_those_of_the_run(report, tmp_path):
    report.write_json(tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["robot"] == "fake_robot"
    assert found["ended_by"] == "duration"
    assert found["loop"]["ticks"] == 31
    assert found["loop"]["rate_hz"] == pytest.approx(10.0)
    assert found["loop"]["period"]["p99_ms"] == pytest.approx(100.0)
    assert found["interventions"] == [
        {"reason": "limits", "reaction": "held", "count": 2}
    ]
    assert [x["step"] for x in found["last_interventions"]] == [7, 8]
    assert found["last_interventions"][0]["before"] == [5.0, 5.0]
    assert found["recording"] == {"episodes": 3, "frames": 30, "dropped": 0}


def test_the_text_and_the_page_say_the_same(report, tmp_path):
    text = str(report)
    assert "31 ticks in 3.00 s: 10.00 Hz of 10 Hz, 0 late" in text
    assert "limits held: 2" in text
    assert "3 episodes, 30 frames, 0 dropped" in text
    report.write_html(tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert page.count("<svg") == 2
    assert "10.00 Hz of 10 Hz, 0 of 31 ticks late" in page
    assert "<td>limits</td><td>held</td><td>2</td>" in page


def test_an_error_is_named(report):
    run, _ = make_run(duration_s=0.1)
    report = RunReport(run, None, ZeroDivisionError())
    assert str(report).startswith("fake_robot: ended by ZeroDivisionError")
    assert report.to_dict()["recording"] is None
