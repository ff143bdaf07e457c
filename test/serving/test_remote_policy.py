from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import LOST, MANIFEST, A, After, H, HandClock, ScriptedConnection
from tensordict import TensorDict

from torchrl_vla.errors import (
    ServingError,
    SessionRefusedError,
    SettingsError,
    WireError,
)
from torchrl_vla.execution import (
    AsyncExecutor,
    MultiStepActorWrapper,
    StepClockWorker,
)
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.serving import (
    ClientOptions,
    ConnectionState,
    ConnectionTimes,
    HoldPosition,
    Link,
    RemotePolicy,
    RepeatLast,
    ZeroAction,
)

POSITION = RobotDatasetMetadata(
    "arm", action_names=("x",), action_reference="absolute", state_names=("x",)
)
STEP = replace(POSITION, action_reference=("delta",))


def make(fallback=None, metadata=None, **options):
    clock = HandClock()
    connection = ScriptedConnection(clock)
    connection.openings.append(replace(MANIFEST, metadata=metadata))
    options.setdefault("request_timeout_s", 2.0)
    chosen = ClientOptions(fallback=fallback, **options)
    policy = RemotePolicy(connection, options=chosen, clock=clock)
    return policy, connection, clock


def act(policy, state: float = 0.5) -> list[float]:
    seen = TensorDict({"observation": {"state": torch.tensor([[state]])}}, [1])
    return policy(seen)["action_chunk"][0, :, 0].tolist()


def test_an_answer_becomes_the_chunk():
    policy, connection, _ = make()
    connection.script.append(After(0.1, 4.0))
    assert act(policy) == [4.0] * H
    assert policy.counts == {"answers": 1}
    assert policy.state is ConnectionState.STREAMING


def test_without_a_fallback_a_missing_answer_raises():
    policy, _, _ = make()
    with pytest.raises(ServingError, match="expected an answer, got no answer in 2 s"):
        act(policy)


FALLBACKS = {
    "hold": (HoldPosition(), POSITION, [0.5] * H),
    "hold steps": (HoldPosition(), STEP, [0.0] * H),
    "repeat": (RepeatLast(), POSITION, [4.0] * H),
    "zero": (ZeroAction(), STEP, [0.0] * H),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_a_fallback_acts_until_an_answer_comes(name):
    fallback, metadata, expected = FALLBACKS[name]
    policy, connection, _ = make(fallback, metadata)
    connection.script.append(After(0.1, 4.0))
    assert act(policy) == [4.0] * H
    assert act(policy) == expected
    assert policy.counts == {"answers": 1, "timeouts": 1, "fallbacks": 1}


def test_there_is_nothing_to_repeat_before_the_first_answer():
    policy, _, _ = make(RepeatLast(), POSITION)
    with pytest.raises(ServingError, match="There is nothing to repeat yet"):
        act(policy)


def test_a_fallback_that_would_move_the_robot_is_refused_when_it_is_chosen():
    with pytest.raises(SettingsError, match="ZeroAction: expected steps or velocities"):
        make(ZeroAction(), POSITION)
    with pytest.raises(SettingsError, match="metadata with action_reference, got none"):
        make(HoldPosition())
    other = replace(POSITION, state_names=("y",))
    with pytest.raises(SettingsError, match=r"absolute action 'x' \(dimension 0\)"):
        make(HoldPosition(), other)
    units = replace(POSITION, action_units=("m",), state_units=("mm",))
    with pytest.raises(SettingsError, match=r"got states \('x',\) in \('mm',\)"):
        make(HoldPosition(), units)


def test_an_answer_older_than_the_bound_is_never_acted_on():
    policy, connection, _ = make(HoldPosition(), POSITION, request_timeout_s=10.0)
    connection.script.append(After(3.5, 4.0))
    assert act(policy) == [0.5] * H
    assert policy.counts == {"late": 1, "fallbacks": 1}


def test_a_late_answer_is_dropped_by_its_number_and_no_second_request_is_under_way():
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script += [After(3.0, 4.0), After(0.5, 6.0)]
    assert act(policy) == [0.5] * H  # 2 of 3 seconds
    assert connection.sent == [1]
    assert act(policy) == [6.0] * H  # the first answer arrives, then the second
    assert connection.sent == [1, 2]
    assert policy.counts == {"answers": 1, "late": 1, "timeouts": 1, "fallbacks": 1}


def test_repeated_and_foreign_answers_are_dropped():
    policy, connection, _ = make()
    connection.script += [
        After(0.1, 9.0, sequence=-1),
        After(0.1, 9.0, sequence=5),
        After(0.1, 4.0),
    ]
    assert act(policy) == [4.0] * H
    assert policy.counts == {"answers": 1, "late": 2}


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(-3, 0)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_reordered_late_or_repeated_answer_is_ever_acted_on(arrivals):
    """Each true answer carries its request's number; others carry -1."""
    policy, connection, _ = make(HoldPosition(), POSITION)
    for delay, offset in arrivals:
        connection.script.append(After(delay, -1.0, sequence=offset or -1))
        asked = len(connection.sent) + 1
        connection.script.append(After(0.0, float(asked)))
        chunk = act(policy)
        held, answered = [0.5] * H, [float(len(connection.sent))] * H
        assert chunk in (held, answered)
        connection.script.clear()
        policy._unanswered = None


def test_the_connection_goes_through_its_states():
    """By the table of docs/serving.md, on a clock that a test sets."""
    policy, connection, clock = make(
        HoldPosition(), POSITION, request_timeout_s=0.5, max_age_s=0.5
    )
    assert policy.state is ConnectionState.STREAMING
    act(policy)
    assert policy.state is ConnectionState.STREAMING  # half a second
    act(policy)
    assert policy.state is ConnectionState.DEGRADED  # one
    for _ in range(4):
        act(policy)
    assert policy.state is ConnectionState.STALLED  # three
    connection.script += [After(0.1, 0.0), After(0.1, 4.0)]
    assert act(policy) == [4.0] * H
    assert policy.state is ConnectionState.STREAMING
    connection.script.append(After(0.0, LOST))
    connection.openings += [LOST] * 100
    act(policy)
    assert policy.state is ConnectionState.RECONNECTING
    clock.instant += 60
    assert policy.state is ConnectionState.DEAD
    with pytest.raises(ServingError, match="given up: the cable is out"):
        act(policy)


def test_it_tries_to_reconnect_at_doubling_intervals_up_to_ten_seconds():
    policy, connection, clock = make(HoldPosition(), POSITION, request_timeout_s=0.1)
    connection.script.append(After(0.0, LOST))
    connection.openings += [LOST] * 100
    tries, opened, begin = [], connection.opened, clock.instant
    for _ in range(400):
        act(policy)
        if connection.opened > opened:
            opened = connection.opened
            tries.append(round(clock.instant - begin, 3))
        clock.instant += 0.1
    # at once, after the loss that the first try of the constructor does not count for
    waits = [round(b - a, 1) for a, b in pairwise(tries)]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 10.0]


def test_without_a_fallback_a_call_waits_for_the_reconnection():
    policy, connection, clock = make(request_timeout_s=5.0)
    connection.script += [After(0.1, 1.0), After(0.0, LOST), After(0.1, 4.0)]
    act(policy)
    connection.openings += [LOST, LOST]
    assert act(policy) == [4.0] * H
    assert clock.slept == [0.5, 1.0]
    assert policy.counts["reconnections"] == 1


def test_a_server_that_serves_something_else_afterwards_is_given_up():
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script += [After(0.0, 1.0), After(0.0, LOST)]
    act(policy)
    connection.openings.append(replace(MANIFEST, metadata=POSITION, revision="other"))
    with pytest.raises(ServingError, match=r"one with other \['revision'\]"):
        act(policy)
    assert policy.state is ConnectionState.DEAD


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("capacity", ConnectionState.RECONNECTING),
        ("draining", ConnectionState.RECONNECTING),
        ("metadata", ConnectionState.DEAD),
        ("token", ConnectionState.DEAD),
    ],
)
def test_only_refusals_that_may_pass_are_tried_again(reason, state):
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script += [After(0.0, 1.0), After(0.0, LOST)]
    act(policy)
    connection.openings += [SessionRefusedError("no.", reason)] * 5
    if state is ConnectionState.DEAD:
        with pytest.raises(ServingError, match="given up: no"):
            act(policy)
    else:
        assert act(policy) == [0.5] * H
    assert policy.state is state


def test_a_message_of_another_program_ends_the_connection_for_good():
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script.append(After(0.0, WireError("no message.")))
    with pytest.raises(ServingError, match="given up: no message"):
        act(policy)
    assert policy.state is ConnectionState.DEAD


@pytest.mark.parametrize("reason", ["rate", "superseded", "draining", "internal"])
def test_a_passing_failure_is_a_missing_answer(reason):
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script.append(After(0.0, reason))
    assert act(policy) == [0.5] * H
    assert policy.counts == {"fallbacks": 1}


def test_an_observation_that_the_policy_refuses_raises_even_with_a_fallback():
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script.append(After(0.0, "policy"))
    with pytest.raises(ServingError, match=r"policy\. No action was sent"):
        act(policy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_never_returned(value):
    policy, connection, _ = make(HoldPosition(), POSITION)
    connection.script.append(After(0.0, value))
    with pytest.raises(ServingError, match="finite"):
        act(policy)


def test_the_first_session_is_waited_for():
    clock = HandClock()
    connection = ScriptedConnection(clock)
    connection.openings += [LOST, LOST, MANIFEST]
    policy = RemotePolicy(connection, clock=clock)
    assert policy.chunk_size == H
    assert clock.slept == [0.5, 1.0]
    connection.openings += [LOST] * 20
    with pytest.raises(ServingError, match="expected a session within 10 s"):
        RemotePolicy(connection, clock=clock)


def test_keys_and_sizes_are_the_servers():
    policy, _, _ = make(metadata=POSITION)
    assert policy.in_keys == [("observation", "state")]
    assert policy.out_keys == ["action_chunk"]
    assert (policy.chunk_size, policy.action_dim) == (H, A)
    assert policy.training_metadata == POSITION


def test_an_asynchronous_executor_takes_it_as_its_policy():
    policy, connection, _ = make()
    connection.script += [After(0.1, float(answer)) for answer in (1, 2, 3)]
    executor = AsyncExecutor(
        policy,
        request_at=2,
        action_reference="absolute",
        worker=StepClockWorker(delay_steps=1),
    )
    actions = []
    for step in range(4):
        seen = TensorDict({"observation": {"state": torch.zeros(1, 1)}}, [1])
        seen["is_init"] = torch.full((1, 1), step == 0)
        actions.append(float(executor(seen)["action"]))
    assert actions == [1.0, 1.0, 2.0, 3.0]


def test_an_executor_executes_a_fallback_like_any_chunk():
    policy, connection, _ = make(RepeatLast(replan_interval=2), POSITION)
    connection.script.append(After(0.1, 4.0))
    executor = MultiStepActorWrapper(policy, replan_interval=2)
    actions = []
    for step in range(4):
        seen = TensorDict({"observation": {"state": torch.zeros(1, 1)}}, [1])
        seen["is_init"] = torch.full((1, 1), step == 0)
        actions.append(float(executor(seen)["action"]))
    assert actions == [4.0] * 4
    assert policy.counts["fallbacks"] == 1


def test_addresses_and_durations_are_checked():
    with pytest.raises(SettingsError, match="expected an address such as"):
        RemotePolicy("http://robot:8000")
    with pytest.raises(SettingsError, match="expected durations > 0"):
        ClientOptions(request_timeout_s=0)
    with pytest.raises(ServingError, match="Start one with `torchrl-vla serve`"):
        RemotePolicy(
            Link("ws://127.0.0.1:1"),
            options=ClientOptions(times=ConnectionTimes(open_s=0.01)),
        )
