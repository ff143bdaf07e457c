from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution.realtime.asynchronous import AsyncExecutor
from torchrl_vla.execution.realtime.inference_workers import (
    InferenceWorker,
    StepClockWorker,
    ThreadWorker,
)
from torchrl_vla.schema import ExecutionError, MissingKeyError
from torchrl_vla.testing import check_executor


class ClockActor(TensorDictModuleBase):
    """chunk[h] = 1000 clock + h, and the clock as its tokens."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.in_keys = ["clock"]
        self.out_keys = ["action_chunk", "action_tokens"]
        self.asked: list[list[int]] = []

    def forward(self, td):
        clock = td["clock"]
        self.asked.append(clock.flatten().tolist())
        ahead = torch.arange(self.chunk_size)
        td["action_chunk"] = (1000.0 * clock[..., None] + ahead)[..., None]
        td["action_tokens"] = clock.clone()
        return td


class ListedDelays(StepClockWorker):
    """The answer to a question of step t arrives delays[t] steps later."""

    def __init__(self, delays) -> None:
        super().__init__(0)
        self.delays = delays

    def submit(self, job, step) -> Future:
        self.delay_steps = self.delays[step]
        return super().submit(job, step)


class Takeover(InferenceWorker):
    """Answers are there when the test says so."""

    def __init__(self) -> None:
        self.open = False

    def submit(self, job, step) -> Future:
        future: Future = Future()
        future.set_result(job())
        return future

    def is_ready(self, answer, step) -> bool:
        return self.open


def make(chunk_size=4, request_at=2, actor=None, delay=1, **options):
    options.setdefault("worker", StepClockWorker(delay))
    options = {"action_reference": "absolute", **options}
    actor = ClockActor(chunk_size) if actor is None else actor
    return AsyncExecutor(actor, request_at=request_at, **options)


def observe(clock, begins):
    td = TensorDict({"clock": clock, "is_init": begins.unsqueeze(-1)}, clock.shape)
    return td


def run(executor, steps, rows=1, begins=(0,), start=0):
    out = []
    for t in range(start, start + steps):
        clock = torch.full((rows,), t + 1)
        out.append(executor(observe(clock, torch.full((rows,), t in begins))))
    return torch.stack(out, -1)


def reference(begins, clocks, delays, request_at, size):
    """One environment: [(action, is_decision, age, tokens, waits)] by step."""
    out = []
    for t, (begin, clock) in enumerate(zip(begins, clocks)):
        now, switches, waits = (
            ([1000.0 * clock + h for h in range(size)], t, clock),
            0,
            0,
        )
        if begin:
            running, pending, switches, age = now, None, 1, 0
        elif pending and t >= pending[1] + delays[pending[1]]:
            running, pending, switches, age = pending, None, 1, t - pending[1]
        if not pending and size - (t - running[1]) <= request_at:
            pending = now
            if delays[t] == 0:
                running, pending, switches, age = pending, None, 1, 0
        if t - running[1] == size:
            running, pending, switches, age = pending, None, 1, t - pending[1]
            waits = 1
        actions, seen_at, tokens = running
        out.append((actions[t - seen_at], bool(switches), age, tokens, waits))
    return out


@st.composite
def streams(draw):
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    size = draw(st.integers(1, 6))
    request_at = draw(st.integers(0, size - 1))
    flags = st.lists(st.sampled_from([False] * 7 + [True]), min_size=time)
    begins = [[True, *draw(flags)[1:time]] for _ in range(batch)]
    late = st.lists(st.integers(0, 8), min_size=time, max_size=time)
    return begins, size, request_at, draw(late)


@settings(max_examples=150, deadline=None)
@given(streams())
def test_agrees_with_one_environment_at_a_time(drawn):
    begins, size, request_at, delays = drawn
    batch, time = len(begins), len(begins[0])
    clocks = 1 + torch.arange(batch * time).reshape(batch, time)
    executor = make(size, request_at, worker=ListedDelays(delays))
    carried, steps = TensorDict({}, [batch]), []
    for t in range(time):
        carried = carried.copy()
        carried["clock"] = clocks[:, t]
        carried["is_init"] = torch.tensor(begins)[:, t, None]
        carried = executor(carried)
        steps.append(carried)
    # Stacked only now: a tensor that was handed out must not change later.
    rollout = torch.stack(steps, -1)
    waits = torch.zeros(time, dtype=torch.bool)
    for row in range(batch):
        expected = reference(
            begins[row], clocks[row].tolist(), delays, request_at, size
        )
        action, switches, age, tokens, waited = zip(*expected)
        got = rollout[row]
        assert got["action"].flatten().tolist() == list(action)
        assert got["is_decision"].flatten().tolist() == list(switches)
        assert got["observation_age"].flatten().tolist() == list(age)
        assert got["action_tokens"].tolist() == list(tokens)
        waits |= torch.tensor(waited).bool()
    assert executor.waits == int(waits.sum())
    assert "action_chunk" not in set(rollout.keys())


@settings(max_examples=80, deadline=None)
@given(streams())
def test_the_policy_sees_no_observation_that_was_not_announced(drawn):
    begins, size, request_at, delays = drawn
    batch, time = len(begins), len(begins[0])
    # Named: episodes of one step look like two robots.
    executor = make(size, request_at, worker=ListedDelays(delays)).for_stream("robot")
    announced = torch.zeros(batch, dtype=torch.bool)
    for t in range(time):
        is_init = torch.tensor(begins)[:, t]
        executor.policy.asked.clear()
        td = executor(observe(100 * t + torch.arange(batch), is_init))
        asked = {clock % 100 for row in executor.policy.asked for clock in row}
        assert asked <= set((announced | is_init).nonzero().flatten().tolist())
        announced = td["observation_needed"][:, 0]


def test_without_delay_and_foresight_it_is_the_open_loop():
    check_executor(lambda actor: make(actor=actor, request_at=0, delay=0), chunk_size=4)


def test_actions_that_are_too_old_are_left_out_by_index():
    # H = 4, asked when 2 are left (step 2), answered 1 step later: enters at index 1.
    rollout = run(make(), 8)
    actions = [1000, 1001, 1002, 3001, 3002, 5001, 5002, 7001]
    assert rollout["action"].flatten().tolist() == actions
    assert rollout["observation_age"].flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    decided = rollout["is_decision"].flatten().nonzero().flatten().tolist()
    assert decided == [0, 3, 5, 7]


@pytest.mark.parametrize(("request_at", "waits"), [(3, 0), (2, 0), (1, 4), (0, 4)])
def test_a_delay_of_up_to_request_at_steps_costs_no_waiting(request_at, waits):
    executor = make(5, request_at, delay=2)
    run(executor, 21)
    # 1: asked at 4, waits at 5 and enters at index 1, so again at 9, 13 and 17.
    # 0: asks and waits at 5, 10, 15 and 20.
    assert executor.waits == waits


@pytest.mark.parametrize("batch_size", [(), (3,), (2, 2)])
def test_environments_in_step_share_one_call(batch_size):
    executor, out = make(), []
    for t in range(6):
        clock = torch.full(batch_size, t + 1)
        out.append(executor(observe(clock, torch.full(batch_size, t == 0))))
    n = torch.Size(batch_size).numel()
    assert executor.policy.asked == [[1] * n, [3] * n, [5] * n]
    rollout = torch.stack(out, -1)
    assert rollout["action"].shape == (*batch_size, 6, 1)
    assert (rollout["action"].reshape(n, 6)[:, 3] == 3001).all()


def test_a_row_that_is_reset_drops_the_answer_that_was_on_its_way():
    executor, out = make(6, 4, delay=3), []
    for t in range(7):
        begins = torch.tensor([t == 0, t in (0, 4)])
        out.append(executor(observe(torch.full((2,), t + 1), begins)))
    actions = torch.stack(out, -1)["action"][..., 0].tolist()
    # Asked at step 2, there at step 5; row 1 begins anew at step 4.
    assert actions[0] == [1000, 1001, 1002, 1003, 1004, 3003, 3004]
    assert actions[1] == [1000, 1001, 1002, 1003, 5000, 5001, 5002]
    assert executor.waits == 0


def test_a_row_that_begins_waits_and_the_others_go_on_with_what_they_have():
    executor = make(6, 3, delay=2)
    run(executor, 3, rows=2)
    td = executor(observe(torch.tensor([4, 40]), torch.tensor([False, True])))
    # Step 3: row 0 is due, and is asked in the call about row 1's beginning.
    assert executor.policy.asked[-1] == [4, 40]
    assert td["action"].flatten().tolist() == [1003, 40000]
    td = executor(observe(torch.tensor([5, 41]), torch.tensor([False, False])))
    assert td["action"].flatten().tolist() == [1004, 40001]
    td = executor(observe(torch.tensor([6, 42]), torch.tensor([False, False])))
    assert td["action"].flatten().tolist() == [4002, 40002]


def test_the_last_action_is_held_until_the_answer_is_there():
    gate = Takeover()
    executor = make(3, 1, worker=gate, when_late="hold")
    rollout = run(executor, 5)
    assert rollout["action"].flatten().tolist() == [1000, 1001, 1002, 1002, 1002]
    assert (executor.holds, executor.waits) == (2, 0)
    assert not rollout["is_decision"][0, 1:].any()
    gate.open = True  # asked at step 2; at step 4 + 1 it would be used up
    with pytest.raises(ExecutionError, match=r"of 3 actions within as many steps.*3\."):
        run(executor, 1, start=5)


def test_a_held_answer_is_entered_at_the_index_where_the_motion_stopped():
    gate = Takeover()
    executor = make(4, 1, worker=gate, when_late="hold")
    run(executor, 5)  # asked at step 3; step 3 moves, step 4 stands still
    gate.open = True
    rollout = run(executor, 1, start=5)
    assert rollout["action"].item() == 4001
    assert rollout["observation_age"].item() == 2


def test_a_repeated_action_moves_on_and_so_does_the_index():
    gate = Takeover()
    executor = make(4, 1, worker=gate, when_late="repeat", action_reference="delta")
    assert run(executor, 5)["action"].flatten().tolist()[3:] == [1003, 1003]
    gate.open = True
    assert run(executor, 1, start=5)["action"].item() == 4002


def test_without_an_action_it_raises_where_it_is_told_to_and_plans_afresh():
    executor = make(3, 1, worker=Takeover(), when_late="stop")
    run(executor, 3)
    match = r"an action for env indices \[0\], got none.*No action was sent"
    with pytest.raises(ExecutionError, match=match):
        run(executor, 1, start=3)
    assert run(executor, 1, start=4)["action"].item() == 5000


class Fails(ClockActor):
    def forward(self, td):
        if td["clock"].max() > 2:
            raise KeyError("camera")
        return super().forward(td)


FAILURE = r"Fails to return a chunk in its worker, got KeyError"


def test_an_error_of_the_policy_surfaces_on_the_step_of_its_answer_with_its_cause():
    executor = make(actor=Fails(4))
    run(executor, 3)  # asked at step 2, answered at step 3
    with pytest.raises(ExecutionError, match=FAILURE) as caught:
        run(executor, 1, start=3)
    assert isinstance(caught.value.__cause__, KeyError)
    assert run(executor, 1, start=0)["action"].item() == 1000


def test_an_error_in_the_thread_surfaces_in_the_control_loop():
    with make(actor=Fails(4), worker=ThreadWorker()) as executor:
        with pytest.raises(ExecutionError, match=FAILURE):
            run(executor, 5)
        assert run(executor, 1, start=0)["action"].item() == 1000


class Waits(ClockActor):
    """Answers in mid-episode once it is released, and says when it was asked."""

    def __init__(self, chunk_size) -> None:
        super().__init__(chunk_size)
        self.is_asked, self.release = threading.Event(), threading.Event()
        self.modes: list[tuple] = []
        self.threads: set[str] = set()

    def forward(self, td):
        self.threads.add(threading.current_thread().name)
        if td["clock"].max() > 1:
            self.is_asked.set()
            assert self.release.wait(20)
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.modes.append((grad, inference, torch.is_autocast_enabled("cpu")))
        return super().forward(td)


def test_the_thread_thinks_while_the_chunk_is_executed():
    actor = Waits(6)
    with make(6, 4, actor=actor, worker=ThreadWorker()) as executor:
        actions = run(executor, 3)["action"].flatten().tolist()  # asked at step 2
        assert actor.is_asked.wait(20)
        actions += run(executor, 2, start=3)["action"].flatten().tolist()
        actor.release.set()
        executor._state.requests[0].answer.result(20)
        actor.release.clear()  # the next question is not answered within the step
        actions += run(executor, 1, start=5)["action"].flatten().tolist()
        actor.release.set()
    assert actions == [1000, 1001, 1002, 1003, 1004, 3003]
    assert executor.waits == 0
    assert all(name.startswith("torchrl_vla-policy") for name in actor.threads)


def test_the_thread_is_ended_and_later_steps_begin_another():
    def policy_threads():
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("torchrl_vla-policy")]

    assert policy_threads() == []
    executor = make(worker=ThreadWorker())
    run(executor, 4)
    assert len(policy_threads()) == 1
    executor.close()
    assert policy_threads() == []
    assert run(executor, 1)["action"].item() == 1000
    executor.close()
    executor.close()  # closing twice is no error
    assert policy_threads() == []


def test_the_policy_gets_a_copy_of_what_was_observed():
    actor = Waits(6)
    with make(6, 5, actor=actor, worker=ThreadWorker()) as executor:
        run(executor, 1)
        clock = torch.tensor([2])
        executor(observe(clock, torch.tensor([False])))
        assert actor.is_asked.wait(20)
        clock.fill_(99)  # as an environment that writes into its buffers does
        actor.release.set()
        executor._state.requests[0].answer.result(20)
        assert actor.asked[-1] == [2]


def test_the_policy_runs_in_the_callers_modes():
    actor = Waits(4)
    actor.release.set()
    with make(actor=actor, worker=ThreadWorker()) as executor:
        run(executor, 1)
        with torch.no_grad():
            run(executor, 1)
        with torch.inference_mode():
            run(executor, 1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            run(executor, 1)
    assert actor.modes == [
        (True, False, False),
        (False, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_a_move_waits_for_the_policy_to_be_at_rest():
    actor = Waits(6)
    with make(6, 5, actor=actor, worker=ThreadWorker()) as executor:
        run(executor, 2)
        assert actor.is_asked.wait(20)
        threading.Timer(0.05, actor.release.set).start()
        executor.to(torch.float64)
        assert actor.asked == [[1], [2]]
        assert run(executor, 1, begins=())["action"].item() == 1000


def test_copies_begin_without_a_chunk_and_with_a_thread_of_their_own():
    executor = make(worker=ThreadWorker(), actor=ClockActor(4))
    run(executor, 3)
    for fresh in (copy.deepcopy(executor), pickle.loads(pickle.dumps(executor))):
        assert run(fresh, 1, begins=())["action"].item() == 1000
        assert fresh.worker._thread is not executor.worker._thread
        fresh.close()
    executor.close()


def test_text_reaches_the_policy_and_its_outputs_the_rollout():
    class Reads(ClockActor):
        def forward(self, td):
            td = super().forward(td)
            self.texts = list(td["language_instruction"])
            return td

    actor = Reads(4)
    actor.in_keys = ["clock", "language_instruction"]
    executor = make(actor=actor)
    for t in range(3):
        td = observe(torch.tensor([t, t]), torch.tensor([t == 0, t in (0, 1)]))
        td["language_instruction"] = NonTensorStack("open", "close")
        executor(td)
        if t == 1:
            assert actor.texts == ["close"]
    assert actor.texts == ["open"]


def test_a_rollout_in_an_environment_is_the_same_every_time():
    class Counter(ClockActor):
        """Counts on by 0.01 from the action that the state echoes."""

        def forward(self, td):
            echo = td["observation", "state"][..., :4]
            ahead = 0.01 * torch.arange(1, self.chunk_size + 1)
            td["action_chunk"] = echo.unsqueeze(-2) + ahead.view(-1, 1)
            return td

    actor = Counter(4)
    actor.in_keys, actor.out_keys = [("observation", "state")], ["action_chunk"]
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    rollout = env.rollout(20, make(actor=actor))
    expected = 0.01 * torch.arange(1.0, 21.0)
    torch.testing.assert_close(rollout["action"][0, :, 0], expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"request_at": 0.5}, r"number of actions at argument 'request_at', got 0.5"),
        ({"request_at": -1}, r"expected request_at >= 0, got -1"),
        (
            {"when_late": "guess"},
            r"\['wait', 'hold', 'repeat', 'zero', 'stop'\], got 'guess'",
        ),
        ({"action_reference": "relative"}, r"'absolute' or 'delta', got 'relative'"),
        (
            {"action_reference": "delta", "when_late": "hold"},
            r"'zero' or 'stop' .* got 'hold': a delta that is held moves on",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_asking_again_about_the_same_observation_is_refused():
    match = r"chunks of more than request_at=4 actions at 'action_chunk', got 4"
    with pytest.raises(ExecutionError, match=match):
        run(make(4, 4), 1)


def test_a_chunk_of_another_length_in_mid_episode_is_refused():
    executor = make()
    run(executor, 2)
    executor.policy.chunk_size = 5
    with pytest.raises(ExecutionError, match=r"a chunk of 4 actions .* got 5"):
        run(executor, 2, start=2)


def test_data_without_is_init_are_refused():
    td = TensorDict({"clock": torch.ones(1)}, [1])
    with pytest.raises(MissingKeyError, match=r"AsyncExecutor: expected a bool"):
        make()(td)


def test_it_prints_when_it_asks_and_what_that_cost():
    expected = (
        "request_at=2, worker=StepClockWorker, when_late='wait', waits=0, holds=0"
    )
    assert make().extra_repr() == expected
