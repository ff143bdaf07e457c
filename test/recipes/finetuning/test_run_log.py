from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchrl_vla.recipes import ResumeError, RunLog
from torchrl_vla.schema import SchemaError

COLUMNS = ("iteration", "loss", "success")


def write(folder, iterations=3, **options) -> RunLog:
    log = RunLog(folder, COLUMNS, **options)
    for iteration in range(1, iterations + 1):
        log.append({"iteration": iteration, "loss": 1 / iteration})
    log.append({"iteration": iterations + 1, "loss": 0.0, "success": 0.75})
    log.close()
    return log


def test_a_number_that_an_iteration_lacks_is_an_empty_cell(tmp_path):
    log = write(tmp_path, iterations=1)
    assert log.path.read_text().split() == [
        "iteration,loss,success",
        "1,1.0,",
        "2,0.0,0.75",
    ]
    assert log.read(log.path) == [
        {"iteration": 1.0, "loss": 1.0},
        {"iteration": 2.0, "loss": 0.0, "success": 0.75},
    ]


def test_a_resumed_log_forgets_what_is_run_again(tmp_path):
    log = write(tmp_path)
    assert [row["iteration"] for row in log.keep_until(2)] == [1.0, 2.0]
    log.append({"iteration": 3, "loss": 7.0})
    assert log.read(log.path)[2] == {"iteration": 3.0, "loss": 7.0}
    assert len(log.read(log.path)) == 3


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_line_that_was_cut_off_does_not_stop_a_resumed_training(tmp_path, cut):
    log = write(tmp_path)
    log.path.write_text(log.path.read_text()[:-cut])
    rows = log.keep_until(3)
    assert [row["loss"] for row in rows] == [1.0, 0.5, 1 / 3]


def test_the_first_digits_of_an_iteration_are_not_taken_for_another(tmp_path):
    log = write(tmp_path, iterations=9)  # and the tenth line
    text = log.path.read_text()
    log.path.write_text(text[: text.index("10,") + 1])
    assert [row["iteration"] for row in log.keep_until(9)] == list(range(1, 10))


@pytest.mark.parametrize("rest", ["", "itera"])
def test_a_log_that_was_cut_off_in_its_first_line_begins_anew(tmp_path, rest):
    (tmp_path / "log.csv").write_text(rest)
    log = RunLog(tmp_path, COLUMNS)
    assert log.keep_until(0) == []
    log.append({"iteration": 1, "loss": 2.0})
    assert log.read(log.path) == [{"iteration": 1.0, "loss": 2.0}]


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert RunLog(tmp_path, COLUMNS).keep_until(5) == []


def test_a_number_without_a_column_is_refused(tmp_path):
    log = RunLog(tmp_path, COLUMNS)
    with pytest.raises(ValueError, match=r"expected numbers of .*, got \['succ'\]"):
        log.append({"iteration": 1, "succ": 1.0})


def test_tensorboard_shows_the_same_numbers(tmp_path):
    write(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.0})
    assert [event.step for event in events.Scalars("success")] == [4]


def test_a_damaged_log_is_refused_by_its_name(tmp_path):
    log = write(tmp_path)
    log.path.write_text("iteration,loss\n1,0.5\ntwo,x\n")
    with pytest.raises(SchemaError, match=r"a number in each cell in '.*log\.csv'"):
        log.read(log.path)
    with pytest.raises(ResumeError, match=r"an iteration in each line in '.*log\.csv'"):
        log.keep_until(1)
    log.path.write_bytes(b"iteration\n\xff\n")
    with pytest.raises(ResumeError, match=r"UTF-8 text in '.*log\.csv'"):
        log.keep_until(1)
