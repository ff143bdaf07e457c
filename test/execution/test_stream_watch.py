"""Robots in one loop, each with a fresh tensordict at each step."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.execution import (
    ActionGuard,
    ActionInterpolation,
    AsyncExecutor,
    EmbodimentContract,
    MultiStepActorWrapper,
    RealTimeChunking,
    StepClockWorker,
    TemporalEnsemble,
    ZerosPrefix,
)
from torchrl_vla.schema import ExecutionError


def policy():
    """Stay where the state is, and count on by 1 for each step of the chunk."""
    return TensorDictModule(
        lambda s: s[:, :1].unsqueeze(-1) + torch.arange(4.0).view(1, 4, 1),
        [("observation", "state")],
        ["action_chunk"],
    )


def interpolated():
    return ActionInterpolation(
        MultiStepActorWrapper(policy()), 2, action_reference="absolute"
    )


def real_time():
    guided = policy()
    guided.optional_in_keys = ["guide_chunk", "guide_weight"]
    return RealTimeChunking(
        guided,
        replan_interval=2,
        inference_delay=1,
        schedule=ZerosPrefix(),
        action_reference="absolute",
    )


MAKERS = {
    "multi-step": lambda: MultiStepActorWrapper(policy()),
    "closed loop": lambda: MultiStepActorWrapper(policy(), replan_interval=1),
    "ensemble": lambda: TemporalEnsemble(policy(), action_reference="absolute"),
    "asynchronous": lambda: AsyncExecutor(
        policy(),
        action_reference="absolute",
        request_at=1,
        worker=StepClockWorker(delay_steps=0),
    ),
    "real-time": real_time,
    "interpolation": interpolated,
    "guarded": lambda: ActionGuard(
        MultiStepActorWrapper(policy()), EmbodimentContract("arm", 1), max_step=5.0
    ),
}
every_executor = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def act(executor, value, begins):
    td = TensorDict({"observation": {"state": torch.full((1, 1), float(value))}}, [1])
    return executor(td.set("is_init", torch.full((1, 1), begins)))["action"].item()


@every_executor
def test_two_robots_that_start_together_raise_before_a_wrong_action(make):
    executor = make()
    assert [act(executor, robot, True) for robot in (0, 100)] == [0, 100]
    with pytest.raises(ExecutionError, match=r"for_stream\(name\).*No action was sent"):
        act(executor, 0, False)


@every_executor
def test_two_robots_in_one_state_raise_when_they_start_together(make):
    executor = make()
    act(executor, 7, True)
    act(executor, 7, True)
    with pytest.raises(ExecutionError, match="began one after the other"):
        act(executor, 7, False)


@every_executor
def test_a_robot_that_starts_while_another_works_raises(make):
    executor = make()
    for step, value in enumerate((0.0, 0.1, 0.2)):
        act(executor, value, step == 0)
    act(executor, 100, True)
    with pytest.raises(ExecutionError, match="jumped back"):
        act(executor, 0.3, False)


@every_executor
def test_each_named_stream_has_its_own_plan(make):
    executor = make()
    alone = make()
    expected = [act(alone, 0.1 * k, k % 6 == 0) for k in range(12)]
    for k in range(12):
        left = act(executor.for_stream("left"), 0.1 * k, k % 6 == 0)
        right = act(executor.for_stream("right"), 100 + 0.1 * k, k % 6 == 0)
        assert left == pytest.approx(expected[k], abs=1e-4)
        assert right == pytest.approx(100 + expected[k], abs=1e-4)


@every_executor
def test_one_robot_with_several_episodes_needs_nothing(make):
    executor, fresh = make(), make()
    for _ in range(3):  # the same episode, and it ends where the next one passes
        fresh.reset()
        for k, value in enumerate((0.0, 0.5, 1.0, 0.5, 0.6)):
            assert act(executor, value, k == 0) == act(fresh, value, k == 0)


@every_executor
def test_a_reset_makes_way_for_another_stream(make):
    executor = make()
    act(executor, 0, True)
    executor.reset()
    act(executor, 100, True)
    act(executor, 100, False)


def test_a_stream_shares_the_policy_and_keeps_the_settings():
    executor = MultiStepActorWrapper(policy(), replan_interval=2)
    stream = executor.for_stream("left")
    assert stream.policy is executor.policy
    assert stream.replan_interval == 2
    assert stream.stream == "left"
    assert executor.stream is None
    assert stream is executor.for_stream("left")
    assert stream is not executor.for_stream("right")


def test_a_guarded_stream_stays_guarded_and_remembers_its_own_actions():
    guarded = MAKERS["guarded"]()
    left, right = guarded.for_stream("left"), guarded.for_stream("right")
    assert type(left) is ActionGuard
    assert left is guarded.for_stream("left")
    assert [act(left, 0, True), act(right, 100, True)] == [0, 100]
    assert [act(left, 0, False), act(right, 100, False)] == [1, 101]  # no step of 100


def test_two_rollouts_of_an_environment_need_nothing():
    executor = MultiStepActorWrapper(policy())
    for _ in range(2):
        td = TensorDict({"observation": {"state": torch.zeros(1, 1)}}, [1])
        td["is_init"] = torch.ones(1, 1, dtype=torch.bool)
        td = executor(td).exclude("action")
        td["is_init"] = torch.zeros(1, 1, dtype=torch.bool)
        assert executor(td)["action"].item() == 1
