from __future__ import annotations

import threading

import pytest

from torchrl_vla.execution.realtime.inference_workers import (
    StepClockWorker,
    ThreadWorker,
)


def fail():
    raise ArithmeticError("no")


def test_a_step_clocks_answer_is_there_after_the_delay_and_not_before():
    worker = StepClockWorker(delay_steps=3)
    answer = worker.submit(lambda: "answer", step=5)
    ready = [worker.is_ready(answer, step) for step in range(5, 10)]
    assert ready == [False, False, False, True, True]
    assert answer.result() == "answer"


def test_without_delay_the_answer_is_there_at_once():
    worker = StepClockWorker(delay_steps=0)
    assert worker.is_ready(worker.submit(lambda: 1, step=5), 5)


@pytest.mark.parametrize("worker", [StepClockWorker(0), ThreadWorker()])
def test_an_error_is_kept_for_whoever_takes_the_answer(worker):
    answer = worker.submit(fail, step=0)
    with pytest.raises(ArithmeticError, match=r"no"):
        answer.result()
    worker.close()


def test_the_thread_does_one_job_after_the_other():
    worker, release, order = ThreadWorker(), threading.Event(), []
    first = worker.submit(lambda: (release.wait(20), order.append(1)), step=0)
    second = worker.submit(lambda: order.append(2), step=0)
    assert not worker.is_ready(second, step=100)
    release.set()
    second.result(20)
    assert worker.is_ready(first, step=0)
    assert order == [1, 2]
    worker.close()


def test_closing_drops_the_jobs_that_have_not_begun():
    worker, begun, release = ThreadWorker(), threading.Event(), threading.Event()
    worker.submit(lambda: (begun.set(), release.wait(20)), step=0)
    waiting = worker.submit(lambda: 2, step=0)
    assert begun.wait(20)
    threading.Timer(0.05, release.set).start()
    worker.close()
    assert waiting.cancelled()


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match=r"expected delay_steps >= 0, got -1"):
        StepClockWorker(-1)


def test_a_wait_ends_at_its_limit_or_with_the_answer():
    worker, release = ThreadWorker(), threading.Event()
    answer = worker.submit(lambda: release.wait(20), step=0)
    assert not worker.wait(answer, 0, timeout_s=0.01)
    release.set()
    assert worker.wait(answer, 0)
    worker.close()


def test_within_a_step_a_step_clock_skips_time_only_where_there_is_no_limit():
    worker = StepClockWorker(2)
    answer = worker.submit(lambda: 1, step=0)
    assert worker.wait(answer, 0)
    assert [worker.wait(answer, t, timeout_s=9.0) for t in (0, 1, 2)] == [
        False,
        False,
        True,
    ]


def test_a_worker_that_is_forgotten_ends_its_thread():
    worker = ThreadWorker()
    worker.submit(lambda: 1, step=0).result(20)
    thread = worker._thread
    del worker
    thread.join(20)
    assert not thread.is_alive()


def test_a_thread_that_hangs_is_left_behind_with_a_warning():
    worker, release = ThreadWorker(), threading.Event()
    worker.grace_s = 0.01
    begun = threading.Event()
    worker.submit(lambda: (begun.set(), release.wait(20)), step=0)
    assert begun.wait(20)
    thread = worker._thread
    with pytest.warns(
        RuntimeWarning, match=r"within 0.01 s of close\(\), and it still"
    ):
        worker.close()
    assert thread.daemon  # it does not keep the process from ending
    release.set()
    thread.join(20)
    assert worker.submit(lambda: 2, step=0).result(20) == 2
    worker.close()
