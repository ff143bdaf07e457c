from __future__ import annotations

import os
import pickle
import traceback

import pytest
import torch
from late_policies import ClockPolicy, ObedientPolicy, actions, play
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.execution import Lateness, ProcessWorker, RealTimeChunking
from torchrl_vla.execution.realtime.inference_workers import CallersModes, PolicyCall
from torchrl_vla.schema import ExecutionError

POLICY = ObedientPolicy()


@pytest.fixture(scope="module")
def worker():
    torch.manual_seed(0)
    worker = ProcessWorker()
    yield worker
    worker.close()


def call(worker, clock):
    inputs = TensorDict({"clock": torch.tensor([clock])}, [1])
    return worker.submit(PolicyCall(POLICY, inputs, CallersModes()), step=0)


def test_the_policy_runs_in_another_process_in_the_callers_modes(worker):
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        one = call(worker, 1).result(60)
    other = call(worker, 2).result(60)
    assert one["process"].item() == other["process"].item() != os.getpid()
    assert (one["grad"].item(), other["grad"].item()) == (False, True)
    assert (one["random"].item(), other["random"].item()) == (True, False)
    assert one["action_chunk"][0, :, 0].tolist() == [1000.0 + h for h in range(6)]


def test_an_error_keeps_its_type_and_its_traceback(worker):
    with pytest.raises(KeyError, match=r"camera") as caught:
        call(worker, 13).result(60)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise KeyError("camera")' in text
    assert call(worker, 1).result(60)["clock"].item() == 1


def test_real_time_chunking_in_a_process_changes_no_bit(worker):
    options = {"replan_interval": 3, "inference_delay": 2}
    options["action_reference"] = "absolute"
    executor = RealTimeChunking(POLICY, worker=worker, **options)
    got = []
    for step in range(12):
        got += actions(play(executor, 1, start=step))
        for request in executor._state.requests:
            request.answer.exception(60)
    assert got == actions(play(RealTimeChunking(ClockPolicy(), **options), 12))


def test_one_worker_serves_one_policy(worker):
    call(worker, 1).result(60)
    other = PolicyCall(ClockPolicy(), TensorDict({}, []))
    with pytest.raises(ExecutionError, match=r"calls of one policy, got PolicyCall of"):
        worker.submit(other, step=0)
    with pytest.raises(ExecutionError, match=r"calls of one policy, got function"):
        worker.submit(lambda: 1, step=0)


def test_a_process_that_ends_is_an_error_and_a_hung_one_is_ended():
    worker = ProcessWorker()
    executor = RealTimeChunking(
        POLICY,
        replan_interval=3,
        inference_delay=2,
        action_reference="absolute",
        worker=worker,
        when_late=Lateness("stop", timeout_s=120),
    )
    with pytest.raises(ExecutionError, match=r"policy's process, and it has ended"):
        play(executor, 1, start=13, begins=(13,))
    # The next step starts another one.
    assert actions(play(executor, 3, start=8, begins=(8,))) == [9000, 9001, 9002]
    hung = call(worker, 15)
    process = worker._process
    executor.close()
    assert not process.is_alive()
    assert isinstance(hung.exception(20), ExecutionError)


def test_a_copy_has_no_process():
    worker = pickle.loads(pickle.dumps(ProcessWorker()))
    assert worker._process is None
    worker.close()
