from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import Compose, InitTracker, StepCounter, TransformedEnv

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import (
    ActionInterpolation,
    MultiStepActorWrapper,
    SkipWaiting,
    TemporalEnsemble,
    select_decisions,
)
from torchrl_vla.schema import InstructionTable, MissingKeyError
from torchrl_vla.testing import ServedStep, check_executor, predicted_action


def reference(ticks, interval):
    """Ask a queue per row on common ticks; a row that begins between them waits."""

    def run(starts):
        rows, out, tick = range(len(starts[0])), [], ticks
        plan = dict.fromkeys(rows, (0, interval))
        goal, waits = dict.fromkeys(rows, 0.0), set()
        for step, line in enumerate(starts):
            waits |= {row for row in rows if line[row]}
            boundary, asked, fresh = tick == ticks or len(waits) == len(line), (), ()
            if boundary:
                tick, fresh, waits, before = 0, waits, set(), dict(goal)
                asked = [r for r in rows if r in fresh or plan[r][1] == interval]
                for row in rows:
                    at, position = (step, 0) if row in asked else plan[row]
                    goal[row] = predicted_action(at, row, position)
                    plan[row] = (at, position + 1)
                    before[row] = goal[row] if row in fresh else before[row]
            tick += 1
            done = tick / ticks
            out.append(
                [
                    ServedStep(
                        before[row] + done * (goal[row] - before[row]),
                        plan[row][0],
                        is_asked=row in asked,
                        is_waiting=row in waits,
                    )
                    for row in rows
                ]
            )
        return out

    return run


@settings(max_examples=60, deadline=None)
@given(data=st.data(), chunk_size=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_leads_from_each_action_to_the_next_in_equal_steps(data, chunk_size, seed):
    interval = data.draw(st.integers(1, chunk_size))
    ticks = data.draw(st.integers(1, 4))
    check_executor(
        lambda actor: ActionInterpolation(
            MultiStepActorWrapper(actor, replan_interval=interval),
            ticks,
            action_reference="absolute",
        ),
        chunk_size=chunk_size,
        reference=reference(ticks, interval),
        num_envs=data.draw(st.integers(1, 4)),
        num_steps=25,
        seed=seed,
    )


class Counting(TensorDictModule):
    """Counts on by one from the first state's echo of the action, H = 2."""

    def __init__(self):
        def plan(state):
            return state[..., None, :4] + torch.tensor([[1.0], [2.0]])

        super().__init__(
            plan, in_keys=[("observation", "state")], out_keys=["action_chunk"]
        )


def interpolated(actor=None, ticks=2, inner=MultiStepActorWrapper, **options):
    executor = inner(Counting() if actor is None else actor, **options)
    return ActionInterpolation(executor, ticks, action_reference="absolute")


def make_env(rows, max_steps=50):
    env = ToyVLAEnv(
        batch_size=[rows], max_steps=max_steps, instructions=InstructionTable()
    )
    transforms = Compose(InitTracker(), StepCounter(), SkipWaiting())
    return TransformedEnv(env, transforms)


def test_a_rollout_holds_decisions_on_their_first_tick_only():
    env = make_env(1)
    rollout = env.rollout(8, interpolated())[0]
    # 1 is held for both ticks, then 1.5, 2 (the chunk's second), then from its echo on.
    actions = rollout["action"][:, 0].tolist()
    assert actions == [1, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert rollout["is_decision"][:, 0].int().tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert rollout["observation_needed"][:, 0].int().tolist() == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]
    decisions = select_decisions(rollout, chunk_size=2, ticks=2)
    assert decisions["next", "executed_steps"].flatten().tolist() == [4, 4]
    assert decisions["next", "is_executed"].all()


def test_rows_that_begin_between_two_actions_wait_for_the_others():
    torch.manual_seed(0)
    env = make_env(3)
    executor = interpolated(ticks=3)
    td = env.reset()
    waited = []
    for t in range(7):
        td = env.step(executor(td))
        waited.append(td["is_waiting"].flatten().int().tolist())
        td = env.step_mdp(td)
        if t == 3:  # ticks of the second action: 3, 4, 5
            td["_reset"] = torch.tensor([[False], [True], [False]])
            td = env.reset(td)
    assert waited == [[0, 0, 0]] * 4 + [[0, 1, 0]] * 2 + [[0, 0, 0]]
    assert td["step_count"].flatten().tolist() == [7, 1, 7]
    assert td["observation", "state"][1, 0].item() == 1.0  # begun afresh, held


def test_wraps_an_executor_that_aligns_its_rows():
    env = make_env(4, max_steps=9)
    actor = Counting()
    rollout = env.rollout(
        60, interpolated(actor, ticks=2, align=True), break_when_any_done=False
    )
    decided = rollout["is_decision"][..., 0]
    assert (decided == decided[:1]).all()  # in one call for all
    moved = ~rollout["is_waiting"][..., 0]
    counts = rollout["step_count"][..., 0][moved]
    assert counts.max() == 8  # waiting is no step of the episode


def test_wraps_an_ensemble():
    env = make_env(1)
    inner = interpolated(ticks=2, inner=TemporalEnsemble, action_reference="absolute")
    rollout = env.rollout(6, inner)[0]
    assert rollout["is_decision"][:, 0].int().tolist() == [1, 0, 1, 0, 1, 0]
    assert rollout["observation_needed"][:, 0].int().tolist() == [0, 1, 0, 1, 0, 1]


def test_more_than_one_row_needs_an_environment_in_which_rows_can_wait():
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    message = r"^ActionInterpolation: .*'is_waiting', got.*Append SkipWaiting\(\)"
    with pytest.raises(MissingKeyError, match=message):
        env.rollout(2, interpolated())
    one = TransformedEnv(ToyVLAEnv(batch_size=[1]), InitTracker())
    assert one.rollout(2, interpolated()).batch_size == (1, 2)


def test_reset_reaches_the_executor_inside():
    said = iter(torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 4, 1))
    actor = TensorDictModule(
        lambda _: next(said), in_keys=["clock"], out_keys=["action_chunk"]
    )
    executor = interpolated(actor)
    step = TensorDict(
        {"clock": torch.zeros(1), "is_init": torch.ones(1, 1).bool()}, [1]
    )
    executor(step.clone())
    executor.reset()
    step["is_init"] = ~step["is_init"]
    assert executor(step)["action"].item() == 1.0


@pytest.mark.parametrize("reference", ["relative", "delta", "world"])
def test_only_absolute_actions_are_interpolated(reference):
    executor = MultiStepActorWrapper(Counting())
    with pytest.raises(ValueError, match=rf"^ActionInterpolation: .*'{reference}'"):
        ActionInterpolation(executor, 2, action_reference=reference)


@pytest.mark.parametrize("ticks", [0, -1, 1.5])
def test_fewer_than_one_tick_is_refused(ticks):
    with pytest.raises(ValueError, match=r"positive int at argument 'ticks', got"):
        ActionInterpolation(
            MultiStepActorWrapper(Counting()), ticks, action_reference="absolute"
        )


def test_a_policy_without_an_executor_is_refused():
    with pytest.raises(TypeError, match=r"expected an Executor, got Counting\. Wrap"):
        ActionInterpolation(Counting(), 2, action_reference="absolute")
