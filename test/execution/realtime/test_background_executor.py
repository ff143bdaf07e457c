from __future__ import annotations

import copy
import pickle
import threading
import time
import traceback

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from late_policies import (
    GUIDE_KEYS,
    ClockPolicy,
    HangingPolicy,
    ListedDelays,
    actions,
    observe,
    play,
)
from tensordict import LazyStackedTensorDict

from torchrl_vla.execution import (
    AsyncExecutor,
    LatencyTracker,
    Lateness,
    RealTimeChunking,
    StepClockWorker,
    ThreadWorker,
)
from torchrl_vla.execution.realtime.rtc_weights import LinearPrefix
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata, SchemaError
from torchrl_vla.testing import check_executor

ABSOLUTE, DELTA = {"action_reference": "absolute"}, {"action_reference": "delta"}


def rtc(policy=None, interval=3, delay=2, **options):
    return RealTimeChunking(
        ClockPolicy() if policy is None else policy,
        replan_interval=interval,
        inference_delay=delay,
        **{**ABSOLUTE, "schedule": LinearPrefix(), **options},
    )


def asynchronous(policy=None, **options):
    policy = ClockPolicy() if policy is None else policy
    return AsyncExecutor(policy, request_at=3, **{**ABSOLUTE, **options})


both = pytest.mark.parametrize("make", [rtc, asynchronous])


class Planner(ClockPolicy):
    """A chunk of irrational numbers that depends on its observation and its guide."""

    def forward(self, td):
        ahead = torch.arange(self.chunk_size).view(-1, 1) / 7
        chunk = (
            (td["clock"][..., None, None] * 1.7 + ahead)
            .sin()
            .expand(*td.shape, self.chunk_size, 3)
        )
        guide = td.get("guide_chunk", None)
        if guide is not None:
            chunk = chunk + td["guide_weight"][..., None] * (guide - chunk) / 3
        return td.set("action_chunk", chunk)


@st.composite
def streams(draw):
    batch, time_ = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    interval = draw(st.integers(1, 4))
    delay = draw(st.integers(0, interval))
    size = interval + delay + draw(st.integers(0, 3))
    flags = st.lists(st.sampled_from([False] * 7 + [True]), min_size=time_)
    begins = [[True, *draw(flags)[1:time_]] for _ in range(batch)]
    late = st.lists(st.integers(0, size), min_size=time_, max_size=time_)
    return begins, interval, delay, size, draw(late)


def serve(executor, begins, after_step=lambda: None):
    out = []
    for t in range(len(begins[0])):
        clock = [100 * t + row for row in range(len(begins))]
        out.append(executor(observe(clock, [row[t] for row in begins])))
        after_step()
    return torch.stack(out, -1)


KEYS = ("action", "is_decision", "observation_age", "observation_needed", *GUIDE_KEYS)


def assert_equal(one, other):
    for key in KEYS:
        assert torch.equal(one[key], other[key]), key


@settings(max_examples=40, deadline=None)
@given(streams(), st.integers(0, 4))
def test_an_answer_that_comes_early_changes_no_bit(drawn, early):
    begins, interval, delay, size, _ = drawn
    worker = StepClockWorker(max(0, delay - early))
    expected = serve(rtc(Planner(size), interval, delay).for_stream("a"), begins)
    got = serve(
        rtc(Planner(size), interval, delay, worker=worker).for_stream("a"), begins
    )
    assert_equal(got, expected)


@settings(max_examples=15, deadline=None)
@given(streams())
def test_a_thread_that_answers_in_time_changes_no_bit(drawn):
    begins, interval, delay, size, _ = drawn
    expected = serve(rtc(Planner(size), interval, delay).for_stream("a"), begins)
    with rtc(Planner(size), interval, delay, worker=ThreadWorker()) as executor:
        stream = executor.for_stream("a")

        def answers_arrive():
            for request in stream._state.requests:
                request.answer.exception(20)

        if delay:  # at 0 the step of the request would have to find the answer
            assert_equal(serve(stream, begins, answers_arrive), expected)


def late_reference(begins, interval, delay, size, delays):
    """One environment of RTC that waits: the (clock, index) of every action."""
    out = []
    for t, begin in enumerate(begins):
        if begin:
            running, pending = t, None
        if pending is not None and t - pending >= max(delays[pending], delay):
            running, pending = pending, None
        if pending is None and t - running >= interval:
            pending = t
            if delay == 0 and delays[t] == 0:
                running, pending = t, None
        if t - running == size:
            running, pending = pending, None
        out.append((running, t - running))
    return out


@settings(max_examples=80, deadline=None)
@given(streams())
def test_late_answers_repeat_and_skip_no_index(drawn):
    begins, interval, delay, size, delays = drawn
    executor = rtc(
        ClockPolicy(size), interval, delay, worker=ListedDelays(delays)
    ).for_stream("a")
    for row, flags in enumerate(begins[:1]):
        rollout = serve(executor, [flags])
        expected = late_reference(flags, interval, delay, size, delays)
        clocks = [1000.0 * (100 * seen + row) + index for seen, index in expected]
        assert rollout["action"][0, :, 0].tolist() == clocks


@settings(max_examples=60, deadline=None)
@given(streams())
def test_the_frozen_prefix_is_what_is_executed_until_the_answer_is_due(drawn):
    begins, interval, _, size, delays = drawn
    tracker = LatencyTracker(window=3)
    executor = rtc(
        Planner(size), interval, tracker, worker=ListedDelays(delays)
    ).for_stream("a")
    planned = []
    original = executor._guide

    def watch(state, envs, starts):
        frozen, guide = original(state, envs, starts)
        if guide and not starts.any():
            left = size - int(state.chunks.positions)
            assert frozen == min(tracker.delay_steps, left)  # at most the committed
            planned.append((state.step, frozen, guide["guide_chunk"][0]))
        return frozen, guide

    executor._guide = watch
    rollout = serve(executor, begins[:1])[0]
    for step, frozen, guide in planned:
        same_episode = [
            t
            for t in range(step, min(step + frozen, len(rollout)))
            if not any(begins[0][step + 1 : t + 1])
        ]
        for t in same_episode:
            assert torch.equal(rollout["action"][t], guide[t - step])


def test_the_delay_is_measured_in_steps_and_plans_the_next_request():
    delays = [0, 0, 0, 2, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    tracker = LatencyTracker(window=2)
    executor = rtc(
        ClockPolicy(7), interval=3, delay=tracker, worker=ListedDelays(delays)
    )
    rollout = play(executor, 17)
    # Requests at 3 (planned 0, took 2, entered at 5), 6 (planned 2, took 1), 9 (planned
    # 2, took 3, entered at 12), 12 (planned 3: of the last two calls).
    decided = rollout["is_decision"].flatten().nonzero().flatten().tolist()
    assert decided == [0, 5, 8, 12, 15]
    assert rollout["observation_age"].flatten()[decided].tolist() == [0, 2, 2, 3, 3]
    weights = [rollout["guide_weight"][t] for t in decided[1:]]
    expected = [LinearPrefix()(frozen, 4, 7) for frozen in (0, 2, 2, 3)]
    assert all(map(torch.equal, weights, expected))
    assert tracker.delay_steps == 0  # of those at 12 and 15


def test_a_delay_beyond_the_committed_actions_is_cut_to_them():
    tracker = LatencyTracker(initial_steps=50)
    executor = rtc(ClockPolicy(6), 4, tracker, worker=StepClockWorker(1))
    rollout = play(executor, 8)
    # Requested at 4 with two actions left; entered at 6 although it was there at 5.
    assert actions(rollout) == [1000, 1001, 1002, 1003, 1004, 1005, 5002, 5003]
    assert torch.equal(rollout["guide_weight"][6], LinearPrefix()(2, 2, 6))


def test_it_is_an_executor_like_the_others():
    def make(policy):
        policy.optional_in_keys = GUIDE_KEYS
        return rtc(policy, 4, 0, worker=StepClockWorker(0))

    check_executor(make, chunk_size=4)


@both
def test_a_hung_policy_holds_and_then_stops_while_it_still_hangs(make):
    policy = HangingPolicy(hangs_from=2)
    lateness = Lateness("hold", timeout_s=0.05, max_late_steps=3)
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    sent = actions(play(executor, 4))  # the policy is called at step 3 and hangs
    assert policy.is_called.wait(20)
    sent += actions(play(executor, 5, start=4))
    assert sent == [1000, 1001, 1002, 1003, 1004, 1005, 1005, 1005, 1005]
    assert executor.holds == 3
    with pytest.raises(ExecutionError, match=r"more than max_late_steps=3 steps") as e:
        play(executor, 1, start=9)
    assert e.value.env_indices == (0,)
    assert not policy.release.is_set()  # nothing waited for it
    policy.release.set()
    executor.close()


@both
@pytest.mark.parametrize("reaction", ["wait", "stop"])
def test_a_policy_that_hangs_on_the_first_step_stops_at_the_deadline(make, reaction):
    policy = HangingPolicy(hangs_from=0)
    lateness = Lateness(reaction, timeout_s=0.05)
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    for _ in range(2):  # the second request waits behind the first
        with pytest.raises(ExecutionError, match=r"env indices \[0\], got none"):
            play(executor, 1)
    assert not policy.release.is_set()
    policy.release.set()
    executor.close()


@both
def test_a_policy_that_hangs_on_the_first_step_holds_the_position(make):
    policy = HangingPolicy(hangs_from=0)
    lateness = Lateness("hold", timeout_s=0.05, position="position")
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    first = play(executor, 1, position=[[7.0]])
    later = play(executor, 2, start=1, position=[[7.5]])
    assert actions(first) + actions(later) == [7.0, 7.0, 7.0]  # it does not drift
    assert not torch.cat([first["is_decision"], later["is_decision"]]).any()
    policy.release.set()
    executor._state.requests[0].answer.result(20)
    # The robot stood still for three steps: the chunk begins with its first action.
    entered = play(executor, 2, start=3, begins=(), position=[[7.5]])
    assert actions(entered) == [1000, 1001]
    assert entered["observation_age"].flatten().tolist() == [3, 3]
    assert entered["is_decision"].flatten().tolist() == [True, False]
    executor.close()


@both
def test_a_wait_in_mid_episode_ends_at_the_deadline(make):
    policy = HangingPolicy(hangs_from=2)
    lateness = Lateness("wait", timeout_s=0.05)
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    play(executor, 6)
    with pytest.raises(ExecutionError, match=r"not answered within timeout_s=0.05"):
        play(executor, 1, start=6)
    assert not policy.release.is_set()
    policy.release.set()
    executor.close()


@both
def test_the_deadline_bounds_one_step_however_many_requests_wait(make):
    policy = HangingPolicy(hangs_from=2)
    lateness = Lateness("stop", timeout_s=0.2)
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    executor(observe([1, 1], [True, True]))
    start = time.monotonic()
    with pytest.raises(ExecutionError, match=r"env indices \[1\], got none"):
        executor(observe([2, 2], [False, True]))
    assert time.monotonic() - start < 20  # the policy hangs for 60
    policy.release.set()
    executor.close()


def late_actions(reaction, make=rtc, steps=8, metadata=None, **options):
    """The actions of a policy whose second answer never comes, and its executor."""
    policy = ClockPolicy(6, action_dim=2)
    policy.training_metadata = metadata
    worker = ListedDelays([0] + [100] * 20)
    executor = make(policy, worker=worker, when_late=reaction, **options)
    return play(executor, steps)["action"], executor


@both
def test_hold_and_repeat_send_the_last_action_again(make):
    last = [[1005.0, 1005.0]] * 3
    assert late_actions("hold", make)[0][5:].tolist() == last
    for reference in (ABSOLUTE, DELTA):
        assert late_actions("repeat", make, **reference)[0][5:].tolist() == last


@both
def test_zero_stops_deltas_and_velocities_and_holds_the_other_dimensions(make):
    assert late_actions("zero", make, **DELTA)[0][5:].tolist() == [
        [1005.0, 1005.0],
        [0.0, 0.0],
        [0.0, 0.0],
    ]
    arm_and_gripper = RobotDatasetMetadata(
        "arm", action_dim=2, action_reference=("delta", "absolute")
    )
    velocity = RobotDatasetMetadata("base", action_dim=2, action_units=("m/s", "rad"))
    for metadata in (arm_and_gripper, velocity):
        sent = late_actions("zero", make, metadata=metadata)[0]
        assert sent[5:].tolist() == [[1005.0, 1005.0], [0.0, 1005.0], [0.0, 1005.0]]


@both
def test_zero_is_refused_for_absolute_targets(make):
    with pytest.raises(ValueError, match=r"an absolute 0 moves there. Use 'hold'"):
        make(when_late="zero")


@both
def test_stop_sends_nothing(make):
    _, executor = late_actions("stop", make, steps=6)
    td = observe([7], [False])
    with pytest.raises(ExecutionError, match=r"has not answered in time.*No action"):
        executor(td)
    assert td.get("action", None) is None


@both
def test_the_first_step_of_an_episode_obeys_each_reaction(make):
    def first(reaction, known_dim=True, **options):
        policy = ClockPolicy(6, action_dim=2)
        if known_dim:
            policy.training_metadata = RobotDatasetMetadata("arm", action_dim=2)
        lateness = Lateness(reaction, timeout_s=0.0, **options)
        reference = ABSOLUTE if reaction in ("hold", "wait") else DELTA
        executor = make(
            policy, worker=StepClockWorker(2), when_late=lateness, **reference
        )
        return play(executor, 4, position=[[3.0, 4.0]])["action"].tolist()

    chunk = [[1000.0, 1000.0], [1001.0, 1001.0]]
    assert first("hold", position="position") == [[3.0, 4.0], [3.0, 4.0], *chunk]
    assert first("zero") == [[0.0, 0.0], [0.0, 0.0], *chunk]
    with pytest.raises(ExecutionError, match=r"got none, and reaction 'hold' has no"):
        first("hold")
    with pytest.raises(ExecutionError, match=r"reaction 'repeat' has no earlier"):
        first("repeat", position="position")
    with pytest.raises(ExecutionError, match=r"not known how many zeros to send"):
        first("zero", known_dim=False)
    with pytest.raises(ExecutionError, match=r"within timeout_s=0.0"):
        first("wait")


@both
def test_a_position_of_another_shape_is_refused(make):
    lateness = Lateness("hold", timeout_s=0.0, position="position")
    executor = make(worker=StepClockWorker(2), when_late=lateness)
    play(executor, 1, position=[[3.0]])
    play(executor, 3, start=1, position=[[3.0]])
    with pytest.raises(
        ExecutionError, match=r"shape \[1, 1\] at 'position', got \[1, 2"
    ):
        play(executor, 1, start=4, begins=(4,), position=[[3.0, 4.0]])


@both
def test_an_environment_that_is_late_leaves_the_others_alone(make):
    lateness = Lateness("hold", timeout_s=0.0, position="position")
    executor = make(worker=StepClockWorker(2), when_late=lateness)
    out = []
    for t in range(8):
        td = observe([t + 1, t + 1], [t == 0, t in (0, 4)], position=[[-1.0]] * 2)
        out.append(executor(td))
    rollout = LazyStackedTensorDict.maybe_dense_stack(out, -1)
    first, second = rollout["action"][..., 0].tolist()
    assert first == [-1, -1, 1000, 1001, 1002, *first[5:]]
    assert second == [-1, -1, 1000, 1001, -1, -1, 5000, 5001]
    # The steps without a chunk belong to no decision of the episode before.
    serials = rollout["decision_index"][1, :, 0].tolist()
    assert serials[4] == serials[5]
    assert len({serials[3], serials[4], serials[6]}) == 3
    assert executor.holds == 2 + 2 + 2


class Fails(HangingPolicy):
    error: Exception

    def forward(self, td):
        td = super().forward(td)
        if self.release.is_set():
            raise self.error
        return td


@both
@pytest.mark.parametrize("error", [KeyError("camera"), SchemaError("no camera")])
def test_an_error_in_the_thread_surfaces_on_the_next_step_with_its_traceback(
    make, error
):
    policy = Fails(hangs_from=2)
    policy.error = error
    with make(policy, worker=ThreadWorker()) as executor:
        play(executor, 4)  # called at step 3
        policy.release.set()
        executor._state.requests[0].answer.exception(20)
        expected = ExecutionError if isinstance(error, KeyError) else SchemaError
        with pytest.raises(expected, match=r"camera") as caught:
            play(executor, 1, start=4)
        text = "".join(traceback.format_exception(caught.value))
        assert "raise self.error" in text
        policy.release.clear()
        assert actions(play(executor, 2)) == [1000, 1001]  # the next step plans again


def policy_threads():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("torchrl_vla-policy")]


@both
def test_the_context_ends_the_thread(make):
    with make(worker=ThreadWorker()) as executor:
        play(executor, 4)
        assert len(policy_threads()) == 1
    assert policy_threads() == []


class Hasty(ThreadWorker):
    grace_s = 0.05


@both
def test_closing_does_not_wait_for_a_policy_that_hangs(make):
    policy = HangingPolicy(hangs_from=2)
    executor = make(policy, worker=Hasty())
    play(executor, 4)
    assert policy.is_called.wait(20)
    with pytest.warns(RuntimeWarning, match=r"Hasty: .* within 0.05 s of close\(\)"):
        executor.close()
    policy.release.set()


@both
def test_a_reset_while_the_policy_hangs_is_bounded_and_says_so(make):
    policy = HangingPolicy(hangs_from=2)
    lateness = Lateness("hold", timeout_s=0.05)
    executor = make(policy, worker=ThreadWorker(), when_late=lateness)
    play(executor, 4)
    assert policy.is_called.wait(20)
    with pytest.raises(ExecutionError, match=r"within timeout_s=0.05 of reset\(\)"):
        executor.reset()
    policy.release.set()
    executor.close()


@both
def test_copies_plan_afresh_in_a_thread_of_their_own(make):
    with make(worker=ThreadWorker()) as executor:
        play(executor, 4)
        for fresh in (copy.deepcopy(executor), pickle.loads(pickle.dumps(executor))):
            with fresh:
                assert actions(play(fresh, 1, start=8, begins=())) == [9000]
                assert fresh.lateness == executor.lateness
                assert fresh.worker is not executor.worker


def test_streams_of_one_executor_share_the_worker_and_no_chunk():
    with rtc(worker=ThreadWorker()) as executor:
        left, right = executor.for_stream("left"), executor.for_stream("right")
        assert actions(play(left, 2)) == [1000, 1001]
        assert actions(play(right, 2, start=4, begins=(4,))) == [5000, 5001]
        assert actions(play(left, 1, start=2)) == [1002]
        assert len(policy_threads()) == 1


def test_the_guide_reaches_a_policy_in_a_thread():
    policy = Planner(6)
    with rtc(policy, worker=ThreadWorker()) as executor:
        play(executor, 4)
        executor._state.requests[0].answer.result(20)
        rollout = play(executor, 2, start=4)
    expected = rtc(Planner(6))
    assert torch.equal(rollout["action"], play(expected, 6)["action"][4:])
    assert rollout["guide_weight"][1].sum() > 0


class Sleepy(ClockPolicy):
    """Takes a few milliseconds of real time, another number of them on each call."""

    def forward(self, td):
        time.sleep(0.001 * (1 + int(td["clock"].max()) % 7))
        return super().forward(td)


@pytest.mark.parametrize("delay", [2, LatencyTracker()])
def test_under_real_timing_no_index_is_repeated_or_skipped(delay):
    with rtc(Sleepy(8), 3, delay, worker=ThreadWorker()) as executor:
        for t in range(300):
            td = executor(observe([t, t], [t == 0, t in (0, 100, 101, 200)]))
            for sent in td["action"].flatten().tolist():
                seen, index = divmod(sent, 1000)
                assert index == t - seen  # by the step, whatever the clock says
            time.sleep(0.0015)


class Interrupted(StepClockWorker):
    def submit(self, job, step):
        if step == 3:
            raise KeyboardInterrupt
        return super().submit(job, step)


@both
def test_after_an_interrupt_within_a_step_the_next_one_plans_again(make):
    executor = make(worker=Interrupted(0))
    play(executor, 3)
    with pytest.raises(KeyboardInterrupt):
        play(executor, 1, start=3)
    assert actions(play(executor, 1, start=4)) == [5000]
