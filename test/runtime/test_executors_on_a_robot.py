"""Every executor acts on a robot as in any environment."""

from __future__ import annotations

import pytest
import torch
from robot_runs import make_run
from tensordict.nn import TensorDictModule
from torchrl.envs import TransformedEnv

from torchrl_vla.execution import (
    ActionGuard,
    AsyncExecutor,
    EmbodimentContract,
    MultiStepActorWrapper,
    StepClockWorker,
    TemporalEnsemble,
)
from torchrl_vla.runtime import DeadlinePolicy, GateOptions, PlainRollout, run_strategy
from torchrl_vla.testing import FakePolicyWorker, FakeRobot

EXECUTORS = {
    "open loop": lambda policy: MultiStepActorWrapper(policy, replan_interval=3),
    "guarded": lambda policy: ActionGuard(
        MultiStepActorWrapper(policy),
        EmbodimentContract.from_metadata(FakeRobot().metadata),
        max_step=0.5,
    ),
    "ensemble": lambda policy: TemporalEnsemble(policy, action_reference="absolute"),
    "asynchronous": lambda policy: AsyncExecutor(
        policy,
        request_at=4,
        action_reference="absolute",
        worker=StepClockWorker(2),
    ),
}


def chunks(calls: list) -> TensorDictModule:
    """Move each joint by 0.01 a step from where it is."""

    def plan(state):
        calls.append(state.clone())
        ahead = torch.arange(1.0, 9.0).div(100).unsqueeze(-1)
        return state.unsqueeze(-2) + ahead

    policy = TensorDictModule(plan, [("observation", "state")], ["action_chunk"])
    policy.chunk_size = 8
    return policy


@pytest.mark.parametrize("timed", [False, True], ids=["plain", "deadline"])
@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_moves_the_robot_step_by_step(name, timed):
    calls: list = []
    run, robot = make_run(duration_s=3.0)
    executor = EXECUTORS[name](chunks(calls))
    run.env = TransformedEnv(run.env, executor.make_environment_transform())
    run.policy = executor
    if timed:
        worker = FakePolicyWorker(robot.clock, [0.0])
        run.policy = DeadlinePolicy(executor, deadline_s=0.05, worker=worker)
    run_strategy(PlainRollout(), run)
    sent = torch.stack([action for _, action in robot.sent])
    assert len(sent) == 30
    # Whoever plans from where the robot is moves it on by 0.01 a step.
    torch.testing.assert_close(sent[-1], torch.full((2,), 0.3), atol=0.02, rtol=0)
    assert (sent.diff(dim=0) >= 0).all()
    assert sent.diff(dim=0).max() <= 0.011
    assert len(calls) < 30 or name == "ensemble"
    assert robot.events == ["connect", "disconnect"]
    assert len(run.robot_env.gate.log) == 0


def test_the_policy_is_called_once_for_each_chunk():
    calls: list = []
    run, _ = make_run(duration_s=3.0, gate=GateOptions("refuse"))
    run.policy = MultiStepActorWrapper(chunks(calls), replan_interval=3)
    run_strategy(PlainRollout(), run)
    assert len(calls) == 10
