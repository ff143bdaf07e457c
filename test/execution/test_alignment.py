"""MultiStepActorWrapper(align=True): rows wait for each other."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import (
    Compose,
    InitTracker,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
)

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiStepActorWrapper, SkipWaiting, select_decisions
from torchrl_vla.rollout import run_episodes
from torchrl_vla.schema import InstructionTable, MissingKeyError
from torchrl_vla.testing import ServedStep, check_executor, predicted_action

with warnings.catch_warnings():  # torchrl 0.14 deprecates classes as it defines them
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import Collector


def reference(interval):
    """Plan for all rows at once; rows that begin in between wait."""

    def run(starts):
        rows, out = range(len(starts[0])), []
        planned_at, position, waits = 0, interval, set()
        for step, line in enumerate(starts):
            waits |= {row for row in rows if line[row]}
            asks = position == interval or len(waits) == len(line)
            if asks:
                planned_at, position, waits = step, 0, set()
            out.append(
                [
                    ServedStep(
                        predicted_action(planned_at, row, position),
                        planned_at,
                        is_asked=asks,
                        is_waiting=row in waits,
                    )
                    for row in rows
                ]
            )
            position += 1
        return out

    return run


@settings(max_examples=60, deadline=None)
@given(data=st.data(), chunk_size=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_agrees_with_a_plan_that_all_rows_share(data, chunk_size, seed):
    interval = data.draw(st.integers(1, chunk_size))
    check_executor(
        lambda actor: MultiStepActorWrapper(
            actor, replan_interval=interval, align=True
        ),
        chunk_size=chunk_size,
        reference=reference(interval),
        num_envs=data.draw(st.integers(1, 5)),
        num_steps=25,
        seed=seed,
    )


class StateActor(TensorDictModuleBase):
    """Counts on by 0.01 from the action that the state echoes."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.n_calls = horizon, 0
        self.in_keys = [("observation", "state")]
        self.out_keys = ["action_chunk"]

    def forward(self, td):
        self.n_calls += 1
        last = td["observation", "state"][..., None, :4]
        ahead = 0.01 * torch.arange(1.0, self.horizon + 1)[:, None]
        return td.set("action_chunk", last + ahead)


class EndAtRandom(Transform):
    """Ends each row's episode with a chance of 1 in 20 at every step."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def _step(self, tensordict, next_tensordict):
        shape = next_tensordict["done"].shape
        over = torch.rand(shape, generator=self.generator) < 0.05
        for key in ("truncated", "done"):
            next_tensordict[key] = next_tensordict[key] | over
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


class EndRows(Transform):
    """Ends the episodes of each row after its own number of steps."""

    def __init__(self, limits):
        super().__init__()
        self.limits = torch.tensor(limits).unsqueeze(-1)

    def _step(self, tensordict, next_tensordict):
        over = next_tensordict["step_count"] >= self.limits
        for key in ("truncated", "done"):
            next_tensordict[key] = next_tensordict[key] | over
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


def toy(rows):
    return ToyVLAEnv(batch_size=[rows], max_steps=500, instructions=InstructionTable())


def test_a_call_serves_all_rows_when_episodes_end_at_random():
    calls = {}
    for align in (False, True):
        steps, horizon = 160, 16
        env = TransformedEnv(
            toy(64), Compose(InitTracker(), EndAtRandom(), SkipWaiting())
        )
        actor = StateActor(horizon)
        executor = MultiStepActorWrapper(actor, align=align)
        td = env.reset()
        for _ in range(steps):
            _, td = env.step_and_maybe_reset(executor(td))
        calls[align] = actor.n_calls / (steps / horizon)
    assert calls[False] > 12  # times the ideal: nearly one call a step
    assert calls[True] <= 1.25


@pytest.mark.parametrize("in_workers", [False, True])
def test_time_stands_still_for_rows_that_wait(in_workers):
    worker = partial(ToyVLAEnv, max_steps=500, instructions=InstructionTable())
    base = SerialEnv(3, [worker] * 3) if in_workers else toy(3)
    steps = Compose(
        InitTracker(), StepCounter(), RewardSum(), EndRows([3, 5, 9]), SkipWaiting()
    )
    env = TransformedEnv(base, steps)
    try:
        executor = MultiStepActorWrapper(StateActor(4), align=True)
        rollout = env.rollout(20, executor, break_when_any_done=False)
    finally:
        env.close()
    # Chunks of 4 and episodes of 3, 5 and 9 steps: rows wait to the next multiple of 4.
    periods = ([4, 3], [8, 5], [12, 9])
    moved = [[t % period < length for t in range(20)] for period, length in periods]
    assert rollout["is_waiting"][..., 0].tolist() == (~torch.tensor(moved)).tolist()
    counts = [
        [t % period if t % period < length else 0 for t in range(20)]
        for period, length in periods
    ]
    assert rollout["step_count"][..., 0].tolist() == counts
    moved = torch.tensor(moved)
    executed = 0.01 * (torch.tensor(counts)[moved] + 1)
    torch.testing.assert_close(rollout["action"][..., 0][moved], executed)
    assert (rollout["next", "reward"][..., 0][~moved] == 0).all()
    assert (rollout["next", "reward"][..., 0][moved] < 0).all()
    assert not rollout["next", "done"][..., 0][~moved].any()
    assert rollout.get("_step", None) is None
    # The action of a row that waits repeats the one before.
    wait = (~moved[:, 1:]).nonzero(as_tuple=True)
    assert torch.equal(rollout["action"][:, 1:][wait], rollout["action"][:, :-1][wait])


def test_decisions_leave_out_the_steps_on_which_a_row_waited():
    env = TransformedEnv(
        toy(2), Compose(InitTracker(), StepCounter(), EndRows([3, 6]), SkipWaiting())
    )
    executor = MultiStepActorWrapper(StateActor(4), align=True)
    rollout = env.rollout(7, executor, break_when_any_done=False)
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions["row_index"].tolist() == [0, 0, 1, 1]
    assert decisions["next", "executed_steps"].flatten().tolist() == [3, 3, 4, 2]
    # After n steps the echoed action is 0.01 n in each of four dimensions.
    echo = decisions["next", "observation", "state"][:, 0]
    torch.testing.assert_close(echo, torch.tensor([0.03, 0.03, 0.04, 0.06]))
    assert decisions["next", "done"].flatten().tolist() == [True, True, False, True]
    moved = ~rollout["is_waiting"]
    total = (rollout["next", "reward"] * moved).sum()
    torch.testing.assert_close(decisions["next", "reward"].sum(), total)


def test_a_collector_gives_what_a_rollout_gives():
    def make_env():
        return TransformedEnv(
            toy(3),
            Compose(InitTracker(), StepCounter(), EndRows([3, 5, 9]), SkipWaiting()),
        )

    executor = MultiStepActorWrapper(StateActor(4), align=True)
    rollout = make_env().rollout(20, executor, break_when_any_done=False)
    collector = Collector(
        make_env(),
        MultiStepActorWrapper(StateActor(4), align=True),
        frames_per_batch=15,  # 5 steps of three rows: not a multiple of 4
        total_frames=60,
        auto_register_policy_transforms=False,
    )
    collected = torch.cat([batch.clone() for batch in collector], -1)
    collector.shutdown()
    for key in ("action", "is_waiting", "is_decision", ("next", "reward")):
        assert torch.equal(collected[key], rollout[key]), key


class EndBySeed(EndRows):
    """Ends an episode after 3 to 9 steps, the same in whichever row it runs."""

    def _step(self, tensordict, next_tensordict):
        self.limits = 3 + next_tensordict["episode_seed"].reshape(-1, 1) % 7
        return super()._step(tensordict, next_tensordict)


def test_evaluation_gives_the_same_episodes_with_and_without_waiting():
    results, waits = [], []
    for align in (False, True):
        steps = Compose(InitTracker(), StepCounter(), EndBySeed([0]), SkipWaiting())
        env = TransformedEnv(TabletopEnv(4, image_size=8, max_steps=12, seed=0), steps)
        executor = MultiStepActorWrapper(ConstantChunks(5), align=align)
        watch = executor.register_forward_hook(
            lambda _, __, td: waits.append(int(td["is_waiting"].sum()))
        )
        results.append(evaluate(env, executor, 10, progress=False))
        watch.remove()
    plain, waited = results
    assert sum(waits) > 10
    assert waited.episodes == plain.episodes
    assert [e.length for e in waited.episodes] == [
        3 + (2**29 + i) % 7 for i in range(10)
    ]


class ConstantChunks(TensorDictModuleBase):
    """A policy whose chunk depends on what it sees at its beginning."""

    def __init__(self, horizon):
        super().__init__()
        self.horizon = horizon
        self.in_keys = [("observation", "state"), "episode_seed"]
        self.out_keys = ["action_chunk"]

    def forward(self, td):
        aim = (
            torch.sin(td["episode_seed"].float())[:, None] - td["observation", "state"]
        )
        return td.set("action_chunk", aim.unsqueeze(-2).expand(-1, self.horizon, -1))


def test_waiting_steps_belong_to_no_episode():
    env = TransformedEnv(
        ToyVLAEnv(batch_size=[2], max_steps=3, instructions=InstructionTable()),
        SkipWaiting(),
    )
    steps = list(
        run_episodes(
            env,
            MultiStepActorWrapper(StateActor(2), align=True),
            [0, 1, 2],
            max_steps=4,
        )
    )
    frames = [
        (episode, frame)
        for step in steps
        for episode, frame in zip(step.episode.tolist(), step.frame.tolist())
        if episode >= 0
    ]
    assert sorted(frames) == [(e, f) for e in range(3) for f in range(3)]


def test_without_a_transform_that_skips_rows_nothing_is_sent():
    env = TransformedEnv(toy(2), InitTracker())
    message = r"'is_waiting', got only .*Append SkipWaiting\(\).*No action was sent"
    with pytest.raises(MissingKeyError, match=message):
        env.rollout(3, MultiStepActorWrapper(StateActor(2), align=True))


def test_a_single_row_never_waits():
    executor = MultiStepActorWrapper(StateActor(3), align=True)
    env = TransformedEnv(toy(1), Compose(InitTracker(), StepCounter(2)))
    rollout = env.rollout(6, executor, break_when_any_done=False)
    assert not rollout["is_waiting"].any()
    assert rollout["is_decision"].flatten().int().tolist() == [1, 0] * 3
