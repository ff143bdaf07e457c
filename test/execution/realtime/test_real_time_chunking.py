from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModuleBase
from tiny_options import make_tiny
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution.decisions import select_decisions
from torchrl_vla.execution.realtime.inference_workers import StepClockWorker
from torchrl_vla.execution.realtime.latency_tracker import LatencyTracker
from torchrl_vla.execution.realtime.real_time_chunking import RealTimeChunking
from torchrl_vla.execution.realtime.rtc_weights import (
    ExponentialPrefix,
    LinearPrefix,
    OnesPrefix,
    ZerosPrefix,
)
from torchrl_vla.policies import TinyFlowVLA
from torchrl_vla.schema import ExecutionError, MissingKeyError

GUIDE_KEYS = ("guide_chunk", "guide_weight")
LINEAR = LinearPrefix()


class GuidedClock(TensorDictModuleBase):
    """chunk[h] = 1000 clock + h; writes what it was asked and guided by."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.in_keys = ["clock"]
        self.optional_in_keys = list(GUIDE_KEYS)
        self.out_keys = ["action_chunk", "action_tokens", "guided_by"]
        self.calls: list[int] = []

    def forward(self, td):
        clock = td["clock"]
        self.calls.append(td.batch_size.numel())
        ahead = torch.arange(self.chunk_size)
        td["action_chunk"] = (1000.0 * clock[..., None] + ahead)[..., None]
        td["action_tokens"] = clock.clone()
        guided_by = torch.zeros(*clock.shape, self.chunk_size)
        if td.get("guide_chunk", None) is not None:
            guided_by = td["guide_chunk"][..., 0] * td["guide_weight"]
        td["guided_by"] = guided_by
        return td


def make(chunk_size=6, horizon=3, delay=2, actor=None, **options):
    options = {"action_reference": "absolute", **options}
    return RealTimeChunking(
        actor or GuidedClock(chunk_size),
        replan_interval=horizon,
        inference_delay=delay,
        **options,
    )


def reference(begins, clocks, horizon, delay, size):
    """One environment: [(action, is_decision, age, tokens, guided_by)] by step."""
    out, weights = [], LINEAR(delay, size - horizon, size).tolist()
    for t, (begin, clock) in enumerate(zip(begins, clocks)):
        chunk, switches = [1000.0 * clock + h for h in range(size)], begin
        if begin:
            running = pending = (chunk, t, clock, [0.0] * size)
            asked_at, age = t, 0
        if not begin and t - asked_at == delay and pending is not running:
            running, switches, age = pending, True, delay
        if t - asked_at == horizon:
            rest = running[0][t - running[1] :]
            guide = [*rest, *[0.0] * (size - len(rest))]
            guided_by = [g * w for g, w in zip(guide, weights)]
            pending, asked_at = (chunk, t, clock, guided_by), t
            if delay == 0:
                running, switches, age = pending, True, 0
        actions, seen_at, tokens, guided_by = running
        out.append((actions[t - seen_at], switches, age, tokens, guided_by))
    return out


@st.composite
def streams(draw):
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    horizon = draw(st.integers(1, 5))
    delay = draw(st.integers(0, horizon))
    size = horizon + delay + draw(st.integers(0, 3))
    flags = st.lists(st.sampled_from([False] * 7 + [True]), min_size=time)
    begins = [[True, *draw(flags)[1:time]] for _ in range(batch)]
    return begins, horizon, delay, size


@settings(max_examples=120, deadline=None)
@given(streams())
def test_agrees_with_one_environment_at_a_time(drawn):
    begins, horizon, delay, size = drawn
    batch, time = len(begins), len(begins[0])
    clocks = 1 + torch.arange(batch * time).reshape(batch, time)
    executor = make(size, horizon, delay, schedule=LINEAR)
    carried, steps = TensorDict({}, [batch]), []
    for t in range(time):
        carried = carried.copy()
        carried["clock"] = clocks[:, t]
        carried["is_init"] = torch.tensor(begins)[:, t, None]
        carried = executor(carried)
        steps.append(carried)
    # Stacked only now: a tensor that was handed out must not change later.
    rollout = torch.stack(steps, -1)
    for row in range(batch):
        expected = reference(begins[row], clocks[row].tolist(), horizon, delay, size)
        action, switches, age, tokens, guided_by = zip(*expected)
        got = rollout[row]
        assert got["action"].flatten().tolist() == list(action)
        assert got["is_decision"].flatten().tolist() == list(switches)
        assert got["observation_age"].flatten().tolist() == list(age)
        assert got["action_tokens"].tolist() == list(tokens)
        torch.testing.assert_close(got["guided_by"], torch.tensor(guided_by))
        weighted = got["guide_chunk"][..., 0] * got["guide_weight"]
        torch.testing.assert_close(weighted, torch.tensor(guided_by))
    assert "action_chunk" not in set(rollout.keys())


@settings(max_examples=60, deadline=None)
@given(streams())
def test_it_announces_the_observations_that_the_policy_will_see(drawn):
    begins, horizon, delay, size = drawn
    batch, time = len(begins), len(begins[0])
    # Named: episodes of one step look like two robots.
    executor = make(size, horizon, delay).for_stream("robot")
    announced = torch.zeros(batch, dtype=torch.bool)
    for t in range(time):
        is_init = torch.tensor(begins)[:, t]
        td = TensorDict({"clock": torch.full((batch,), t), "is_init": is_init[:, None]})
        td.batch_size = [batch]
        executor.policy.calls.clear()
        td = executor(td)
        assert sum(executor.policy.calls) == int((announced | is_init).sum())
        announced = td["observation_needed"][:, 0]


def run(executor, steps, batch_size=(), begins=(0,)):
    out = []
    for t in range(steps):
        td = TensorDict({"clock": torch.full(batch_size, t + 1)}, batch_size)
        td["is_init"] = torch.full((*batch_size, 1), t in begins)
        out.append(executor(td))
    return torch.stack(out, -1)


def test_the_first_actions_of_a_new_chunk_are_those_of_the_old_one():
    # H = 6, s = 3, d = 2: the chunk that is asked for at step 3 is entered at step 5.
    rollout = run(make(), 9)
    actions = [1000, 1001, 1002, 1003, 1004, 4002, 4003, 4004, 7002]
    assert rollout["action"].flatten().tolist() == actions
    decided = [t in (0, 5, 8) for t in range(9)]
    assert rollout["is_decision"].flatten().tolist() == decided
    assert rollout["observation_age"].flatten().tolist() == [0] * 5 + [2] * 4


def test_the_guide_is_what_is_left_of_the_old_chunk_and_zero_beyond():
    rollout = run(make(), 6)
    assert rollout["guide_chunk"][5].flatten().tolist() == [1003, 1004, 1005, 0, 0, 0]
    assert rollout["guide_weight"][4].tolist() == [0.0] * 6
    expected = ExponentialPrefix()(2, 3, 6)
    assert torch.equal(rollout["guide_weight"][5], expected)


@pytest.mark.parametrize("schedule", [LinearPrefix(), OnesPrefix(), ZerosPrefix()])
def test_the_weights_are_those_of_the_schedule(schedule):
    rollout = run(make(schedule=schedule), 6)
    assert torch.equal(rollout["guide_weight"][5], schedule(2, 3, 6))


@pytest.mark.parametrize("batch_size", [(), (3,), (2, 2)])
def test_environments_in_step_share_one_call(batch_size):
    executor = make()
    rollout = run(executor, 12, batch_size)
    rows = torch.Size(batch_size).numel()
    assert executor.policy.calls == [rows] * 4  # at steps 0, 3, 6 and 9
    assert rollout["action"].shape == (*batch_size, 12, 1)
    assert (rollout["action"].reshape(rows, 12)[:, 5] == 4002).all()


def test_a_row_that_is_reset_forgets_the_answer_that_was_on_its_way():
    executor, out = make(), []
    for t in range(8):
        td = TensorDict({"clock": torch.full((2,), t + 1)}, [2])
        td["is_init"] = torch.tensor([[t == 0], [t in (0, 4)]])
        out.append(executor(td)["action"].flatten().tolist())
    # Asked at step 3; row 1 begins anew at step 4 and enters nothing at step 5.
    assert [row[1] for row in out] == [1000, 1001, 1002, 1003, *range(5000, 5004)]
    assert [row[0] for row in out][4:6] == [1004, 4002]


def test_rows_that_begin_and_rows_that_go_on_are_asked_in_one_call():
    executor = make(delay=0)
    for t in range(4):
        td = TensorDict({"clock": torch.full((2,), t + 1)}, [2])
        td["is_init"] = torch.tensor([[t == 0], [t in (0, 3)]])
        td = executor(td)
    assert executor.policy.calls == [2, 2]
    assert td["guide_weight"][0].tolist() == ExponentialPrefix()(0, 3, 6).tolist()
    assert td["guide_weight"][1].tolist() == [0.0] * 6
    assert td["guide_chunk"][1].flatten().tolist() == [0.0] * 6


def test_copies_and_moved_executors_plan_afresh():
    executor = make()
    run(executor, 4)
    for fresh in (
        copy.deepcopy(executor),
        pickle.loads(pickle.dumps(executor)),
        executor.to(torch.float64),
    ):
        td = TensorDict({"clock": torch.tensor(9)}, [])
        td["is_init"] = torch.tensor([False])
        assert fresh(td)["action"].item() == 9000


def test_a_rollout_in_an_environment_executes_one_continuous_stream():
    class Counter(GuidedClock):
        """Counts on by 0.01 from the action that the state echoes."""

        def forward(self, td):
            echo = td["observation", "state"][..., :4]
            ahead = 0.01 * torch.arange(1, self.chunk_size + 1)
            td["action_chunk"] = echo.unsqueeze(-2) + ahead.view(-1, 1)
            return td

    actor = Counter(8)
    actor.in_keys, actor.out_keys = [("observation", "state")], ["action_chunk"]
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    rollout = env.rollout(20, make(8, 4, 2, actor=actor))
    expected = 0.01 * torch.arange(1.0, 21.0)
    torch.testing.assert_close(rollout["action"][0, :, 0], expected)
    assert rollout["is_decision"][0, :, 0].nonzero().flatten().tolist() == [
        0,
        6,
        10,
        14,
        18,
    ]


class Planner(TensorDictModuleBase):
    """A chunk that depends on the state that it saw and on its guide."""

    in_keys = [("observation", "state")]
    optional_in_keys = list(GUIDE_KEYS)
    out_keys = ["action_chunk", "choice"]

    def __init__(self, chunk_size) -> None:
        super().__init__()
        self.chunk_size = chunk_size

    def forward(self, td):
        ahead = torch.arange(1, self.chunk_size + 1) / 100
        chunk = td["observation", "state"][..., None, :4] + ahead[:, None]
        guide = td.get("guide_chunk", None)
        if guide is not None:
            chunk = chunk + 0.1 * td["guide_weight"][..., None] * (guide - chunk)
        td["choice"] = chunk.clone()
        return td.set("action_chunk", chunk)


def test_decisions_hold_all_that_the_policy_needs_to_choose_again():
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    actor = Planner(8)
    rollout = env.rollout(30, make(8, 4, 2, actor=actor, schedule=LINEAR))
    decisions = select_decisions(rollout, 8)
    assert decisions["observation_age"].unique().tolist() == [0, 2]
    again = actor(decisions.select(*actor.in_keys, *GUIDE_KEYS))["action_chunk"]
    assert torch.equal(again, decisions["choice"])
    executed = decisions["next", "is_executed"]
    sent = rollout["action"].reshape(-1, 4)
    assert torch.equal(again[executed], sent)


def test_a_policy_that_takes_no_guide_is_refused():
    actor = GuidedClock(6)
    actor.optional_in_keys = ["guide_chunk"]
    match = r"expected GuidedClock to have .guide_chunk. and .guide_weight. in its"
    with pytest.raises(ValueError, match=match):
        make(actor=actor)
    del actor.optional_in_keys
    with pytest.raises(ValueError, match=r"got \[\]: it cannot continue a chunk"):
        make(actor=actor)


@pytest.mark.parametrize("delay", [-1, 4])
def test_an_answer_that_is_later_than_the_next_request_is_refused(delay):
    match = rf"expected inference_delay in 0..replan_interval=3, got {delay}"
    with pytest.raises(ValueError, match=match):
        make(delay=delay)


def test_chunks_that_are_relative_to_a_state_are_refused():
    with pytest.raises(ValueError, match=r"'absolute' or 'delta', got 'relative'"):
        make(action_reference="relative")
    with pytest.raises(ValueError, match=r"action_reference of .*, got 'state'"):
        make(action_reference="state")


def test_a_chunk_that_ends_before_the_next_one_is_there_is_refused():
    match = r"at least replan_interval \+ inference_delay = 5 actions .* got 4"
    with pytest.raises(ExecutionError, match=match):
        run(make(chunk_size=4), 1)


def test_a_chunk_of_another_length_in_mid_episode_is_refused():
    executor = make()
    run(executor, 2)
    executor.policy.chunk_size = 7
    with pytest.raises(ExecutionError, match=r"expected chunks of 6 actions .* got 7"):
        run(executor, 4, begins=())


def test_data_without_is_init_are_refused():
    td = TensorDict({"clock": torch.ones(1)}, [1])
    with pytest.raises(MissingKeyError, match=r"RealTimeChunking: expected a bool"):
        make()(td)


def test_it_prints_when_it_asks():
    expected = (
        "replan_interval=3, inference_delay=2, schedule=ExponentialPrefix(), "
        "worker=StepClockWorker, when_late='wait', waits=0, holds=0"
    )
    assert make().extra_repr() == expected


def naive_flow_loop(policy, frames, interval, delay, schedule):
    """Execute one environment by the definition; return its actions."""
    out, size = [], policy.chunk_size
    for t, frame in enumerate(frames):
        if t == 0:
            running, seen_at, pending = policy(frame.clone())["action_chunk"], 0, None
        if pending is not None and t - pending[1] == delay:
            (running, seen_at), pending = pending, None
        if pending is None and t - seen_at == interval:
            guide = torch.zeros_like(running)
            guide[:, : size - interval] = running[:, interval:]
            weight = schedule(delay, size - interval, size).unsqueeze(0)
            asked = frame.clone().update({"guide_chunk": guide, "guide_weight": weight})
            pending = policy(asked)["action_chunk"], t
            if delay == 0:
                (running, seen_at), pending = pending, None
        out.append(running[:, t - seen_at])
    return torch.stack(out, 1)


@pytest.mark.parametrize("delay", [0, 1, 4])
@pytest.mark.parametrize("worker", [None, StepClockWorker(0)])
def test_a_flow_policy_acts_as_in_a_naive_loop_bit_for_bit(delay, worker):
    torch.manual_seed(0)
    policy = make_tiny(TinyFlowVLA, action_dim=2, chunk_size=9, state_dim=3, hidden=8)
    policy.eval()
    frames = torch.rand(17, 1, 3)
    steps = []
    for t, state in enumerate(frames):
        td = TensorDict({("observation", "state"): state}, [1])
        td["observation", "image"] = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        td["language_instruction"] = NonTensorStack("lift")
        steps.append(td.set("is_init", torch.tensor([[t == 0]])))
    with torch.no_grad():
        torch.manual_seed(1)  # the policy's noise
        expected = naive_flow_loop(policy, steps, 4, delay, LINEAR)
        torch.manual_seed(1)
        executor = make(
            actor=policy, horizon=4, delay=delay, worker=worker, schedule=LINEAR
        )
        got = [executor(td.clone())["action"] for td in steps]
    assert torch.equal(torch.stack(got, 1), expected)


def test_a_measured_delay_needs_a_worker():
    with pytest.raises(ValueError, match=r"expected a worker for an inference_delay"):
        make(delay=LatencyTracker())
