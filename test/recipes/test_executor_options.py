from __future__ import annotations

import pytest
from late_policies import ClockPolicy, actions, play

from torchrl_vla.errors import SettingsError
from torchrl_vla.execution import (
    ACTEnsemble,
    AsyncExecutor,
    LatencyTracker,
    Lateness,
    MultiStepActorWrapper,
    ProcessWorker,
    RealTimeChunking,
    Replace,
    StepClockWorker,
    TemporalEnsemble,
    ThreadWorker,
    WeightedAverage,
)
from torchrl_vla.recipes import ExecutorOptions
from torchrl_vla.schema import RobotDatasetMetadata

ABSOLUTE = {"action_reference": "absolute"}


def make(replan_interval=None, metadata=None, **options):
    policy = ClockPolicy(6)
    policy.training_metadata = metadata
    return ExecutorOptions(**options).maker(replan_interval)(policy)


def test_each_name_makes_its_executor():
    plain = make(2)
    assert (type(plain), plain.replan_interval) == (MultiStepActorWrapper, 2)
    assert type(make(executor="ensemble", **ABSOLUTE)) is TemporalEnsemble
    ahead = make(executor="async", request_at=2, **ABSOLUTE)
    assert (type(ahead), ahead.request_at) == (AsyncExecutor, 2)
    assert (ahead.worker.delay_steps, ahead.overlap) == (0, Replace())
    chunking = make(executor="rtc", inference_delay=1, **ABSOLUTE)
    assert type(chunking) is RealTimeChunking
    assert (chunking.replan_interval, chunking.inference_delay) == (3, 1)


def test_the_options_reach_the_executor():
    executor = make(
        4,
        executor="rtc",
        worker="thread",
        when_late="hold",
        timeout_s=0.5,
        max_late_steps=9,
        **ABSOLUTE,
    )
    assert executor.replan_interval == 4
    assert isinstance(executor.worker, ThreadWorker)
    assert isinstance(executor.inference_delay, LatencyTracker)
    assert executor.lateness == Lateness("hold", timeout_s=0.5, max_late_steps=9)
    for name, overlap in (("average", WeightedAverage()), ("ensemble", ACTEnsemble())):
        ahead = make(
            executor="async", request_at=1, overlap=name, worker="process", **ABSOLUTE
        )
        assert ahead.overlap == overlap
        assert isinstance(ahead.worker, ProcessWorker)


def test_a_delay_is_simulated_within_the_step():
    executor = make(executor="async", request_at=3, inference_delay=2, **ABSOLUTE)
    assert isinstance(executor.worker, StepClockWorker)
    assert actions(play(executor, 7)) == [1000, 1001, 1002, 1003, 1004, 4002, 4003]


def test_the_metadata_say_what_actions_are_measured_from():
    mixed = RobotDatasetMetadata(
        "arm", action_dim=2, action_reference=("delta", "absolute")
    )
    executor = make(metadata=mixed, executor="rtc", inference_delay=1, **ABSOLUTE)
    assert executor.action_reference == "delta"
    relative = RobotDatasetMetadata("arm", action_dim=1, action_reference="relative")
    with pytest.raises(ValueError, match=r"'absolute' or 'delta', got 'relative'"):
        make(metadata=relative, executor="rtc", inference_delay=1)
    with pytest.raises(SettingsError, match=r"Say what .* --action-reference absolute"):
        make(executor="rtc", inference_delay=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"worker": "thread", "when_late": "hold"},
            r"--executor chunks: .* --when-late hold, --worker thread. They would",
        ),
        ({"executor": "async"}, r"expected --request-at"),
        ({"executor": "rtc"}, r"expected --inference-delay, .* got neither"),
        (
            {"executor": "rtc", "inference_delay": 1, "request_at": 2},
            r"got --request-at 2",
        ),
        (
            {
                "executor": "async",
                "request_at": 1,
                "worker": "thread",
                "inference_delay": 2,
            },
            r"--worker thread: expected no --inference-delay, got 2",
        ),
    ],
)
def test_options_without_effect_are_refused(options, match):
    with pytest.raises(SettingsError, match=match):
        ExecutorOptions(**options).check()


@pytest.mark.parametrize("executor", ["ensemble", "async"])
def test_an_interval_without_effect_is_refused(executor):
    options = ExecutorOptions(executor, request_at=1 if executor == "async" else None)
    with pytest.raises(SettingsError, match=r"expected no --replan-interval, got 2"):
        options.maker(2)


def test_half_a_chunk_needs_to_know_the_chunk():
    policy = ClockPolicy(6)
    del policy.chunk_size
    options = ExecutorOptions("rtc", inference_delay=1, action_reference="absolute")
    with pytest.raises(SettingsError, match=r"to declare chunk_size, got none"):
        options.maker()(policy)
