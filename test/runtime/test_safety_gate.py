from __future__ import annotations

import ast
import math
import threading
from collections import deque
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

import torchrl_vla
from torchrl_vla.runtime import (
    ActionOrigin,
    GateOptions,
    RobotStoppedError,
    SafetyGate,
    StaleActionError,
)
from torchrl_vla.schema import (
    ActionGuardError,
    ExecutionError,
    IncompatibleMetadataError,
    MetadataError,
    SchemaError,
)
from torchrl_vla.testing import FakeClock, FakeRobot, FakeRobotOptions


def make_gate(options: GateOptions | None = None, **robot_options):
    clock = FakeClock()
    robot = FakeRobot(FakeRobotOptions(**robot_options), clock=clock)
    gate = SafetyGate(robot, options, clock=clock)
    gate.connect()
    gate.begin_session()
    return gate, robot, clock


def sent(robot: FakeRobot) -> list[list[float]]:
    return [[round(x, 6) for x in action.tolist()] for _, action in robot.sent]


@pytest.mark.parametrize("mode", ["refuse", "clip", "hold"])
def test_a_legal_action_passes_as_it_is(mode):
    gate, robot, _ = make_gate(GateOptions(mode))
    origin = gate.origin_of(gate.observe())
    out = gate.send(torch.tensor([0.25, -1.0], dtype=torch.float64), origin)
    assert out.dtype == torch.float32
    assert sent(robot) == [[0.25, -1.0]]
    assert len(gate.log) == 0


@pytest.mark.parametrize(
    ("mode", "expected", "reaction"),
    [("clip", [[0.5, 0.0], [1.0, 0.0]], "clipped"), ("hold", [[0.5, 0.0]] * 2, "held")],
)
def test_an_action_beyond_the_limits_is_clipped_or_held(mode, expected, reaction):
    gate, robot, _ = make_gate(GateOptions(mode))
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), origin)
    gate.send(torch.tensor([90.0, 0.0]), origin)
    assert sent(robot) == expected
    (found,) = gate.log
    assert (found.step, found.reason, found.reaction) == (1, "limits", reaction)
    assert found.before == (90.0, 0.0)
    assert found.after == tuple(expected[-1])


def test_refuse_raises_and_sends_nothing():
    gate, robot, _ = make_gate(GateOptions("refuse"))
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), origin)
    with pytest.raises(ActionGuardError, match=r"expected -1.0 .. 1.0 at .*shoulder"):
        gate.send(torch.tensor([90.0, 0.0]), origin)
    assert sent(robot) == [[0.5, 0.0]]
    assert gate.log.counts == {("limits", "refused"): 1}


@pytest.mark.parametrize("mode", ["clip", "hold"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_a_number_that_is_not_finite_never_passes(mode, bad):
    gate, robot, _ = make_gate(GateOptions(mode))
    origin = gate.origin_of(gate.observe())
    assert gate.send(torch.tensor([bad, 0.0], dtype=torch.float64), origin) is None
    assert robot.sent == []  # there is nothing to hold
    gate.send(torch.tensor([0.5, 0.0]), origin)
    gate.send(torch.tensor([bad, 0.0], dtype=torch.float64), origin)
    assert sent(robot) == [[0.5, 0.0]] * 2


@pytest.mark.parametrize(
    "action",
    [torch.zeros(3), torch.zeros(1), torch.zeros(2, dtype=torch.int64)],
    ids=["wide", "narrow", "int"],
)
@pytest.mark.parametrize("mode", ["refuse", "clip", "hold"])
def test_another_width_or_type_is_refused_in_every_mode(mode, action):
    gate, robot, _ = make_gate(GateOptions(mode))
    origin = gate.origin_of(gate.observe())
    with pytest.raises(ActionGuardError, match=r"expected (action dimension|floats)"):
        gate.send(action, origin)
    assert robot.sent == []


def test_a_jump_of_90_with_a_largest_step_of_8_is_a_step_of_8():
    clock = FakeClock()
    robot = FakeRobot(FakeRobotOptions(num_joints=1), clock=clock)
    robot.metadata = replace(robot.metadata, action_low=(-180.0,), action_high=(180.0,))
    gate = SafetyGate(robot, GateOptions("clip", max_step=8.0), clock=clock)
    gate.connect()
    gate.begin_session()
    origin = gate.origin_of(gate.observe())  # it measures 0
    for _ in range(2):
        gate.send(torch.tensor([90.0]), origin)
    assert sent(robot) == [[8.0], [16.0]]


def test_the_first_action_is_compared_with_the_measured_position():
    gate, robot, _ = make_gate(GateOptions("hold", max_step=0.1))
    robot.send(torch.tensor([0.5, 0.5]))
    robot.sent.clear()
    origin = gate.origin_of(gate.observe())
    assert gate.send(torch.tensor([0.0, 0.5]), origin) is None
    gate.send(torch.tensor([0.45, 0.5]), origin)
    assert sent(robot) == [[0.45, 0.5]]
    assert gate.log.counts == {("step", "held"): 1}


def test_a_velocity_bounds_the_change_of_a_period_and_of_a_burst():
    gate, robot, clock = make_gate(
        GateOptions("clip", max_velocity=3.0), rate_hz=10.0, num_joints=1
    )
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([1.0]), origin)  # 3 / s * 0.1 s
    clock.advance_s(0.1)
    gate.send(torch.tensor([1.0]), origin)
    clock.advance_s(0.02)  # a burst
    gate.send(torch.tensor([1.0]), origin)
    clock.advance_s(0.3)  # a pause allows no more than a period
    gate.send(torch.tensor([1.0]), origin)
    assert sent(robot) == [[0.3], [0.6], [0.66], [0.96]]


def test_a_delta_is_held_as_zero_and_compared_with_rest():
    clock = FakeClock()
    robot = FakeRobot(clock=clock)
    robot.metadata = replace(robot.metadata, action_reference=("delta", "absolute"))
    gate = SafetyGate(robot, GateOptions("hold"), clock=clock)
    gate.connect()
    gate.begin_session()
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.5]), origin)
    gate.hold("late policy")
    assert sent(robot) == [[0.5, 0.5], [0.0, 0.5]]


STALE = {
    "stale observation": lambda gate, clock: (clock.advance_s(0.51), None)[1],
    "stale action": lambda gate, clock: clock.now_s() - 3.01,
}


@pytest.mark.parametrize("reason", STALE)
@pytest.mark.parametrize("mode", ["hold", "clip", "refuse"])
def test_a_stale_action_is_held_or_refused(mode, reason):
    gate, robot, clock = make_gate(GateOptions(mode))
    clock.advance_s(5.0)
    gate.begin_session()
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), origin)
    planned_at = STALE[reason](gate, clock)
    late = replace(origin, planned_at_s=planned_at)
    if mode == "refuse":
        with pytest.raises(StaleActionError, match=reason):
            gate.send(torch.tensor([0.7, 0.0]), late)
        assert sent(robot) == [[0.5, 0.0]]
    else:
        gate.send(torch.tensor([0.7, 0.0]), late)
        assert sent(robot) == [[0.5, 0.0]] * 2
    assert [found.reason for found in gate.log] == [reason]


def test_an_action_for_an_overtaken_observation_is_held():
    gate, robot, clock = make_gate()
    old = gate.origin_of(gate.observe())
    clock.advance_s(0.03)
    new = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), new)
    gate.send(torch.tensor([0.7, 0.0]), old)
    assert sent(robot) == [[0.5, 0.0]] * 2
    assert gate.log.counts == {("overtaken", "held"): 1}


def test_an_action_of_another_session_sends_nothing():
    gate, robot, _ = make_gate()
    before = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), before)
    gate.begin_session()
    now = gate.origin_of(gate.observe())
    invented = ActionOrigin(now.session, now.observed_at_s + 0.01)
    for foreign in (before, invented, replace(now, session=now.session + 1)):
        assert gate.send(torch.tensor([0.7, 0.0]), foreign) is None
    assert sent(robot) == [[0.5, 0.0]]
    assert gate.log.counts == {("foreign session", "held"): 3}


def test_no_action_passes_before_a_session_begins():
    clock = FakeClock()
    robot = FakeRobot(clock=clock)
    gate = SafetyGate(robot, clock=clock)
    gate.connect()
    origin = gate.origin_of(gate.observe())
    assert gate.send(torch.zeros(2), origin) is None
    assert robot.sent == []


def test_the_watchdog_stops_the_robot_after_its_time_without_a_fresh_action():
    gate, robot, clock = make_gate(GateOptions(watchdog_s=0.5))
    origin = gate.origin_of(gate.observe())
    gate.send(torch.tensor([0.5, 0.0]), origin)
    for _ in range(5):
        clock.advance_s(0.1)
        gate.hold("late policy")
    clock.advance_s(0.1)
    with pytest.raises(RobotStoppedError, match=r"none for 0.60 s.*'late policy'"):
        gate.hold("late policy")
    with pytest.raises(RobotStoppedError, match="watchdog"):
        gate.send(torch.tensor([0.6, 0.0]), gate.origin_of(gate.observe()))
    assert sent(robot) == [[0.5, 0.0]] * 6
    assert gate.stopped_by == "watchdog"


def test_a_stop_latches_until_it_is_released_and_a_session_begins():
    gate, robot, _ = make_gate()
    origin = gate.origin_of(gate.observe())
    gate.stop("button")
    gate.stop("another")
    with pytest.raises(RobotStoppedError, match=r"button\. No action was sent"):
        gate.send(torch.zeros(2), origin)
    with pytest.raises(RobotStoppedError, match="button"):
        gate.hold("late policy")
    gate.release()
    assert gate.send(torch.zeros(2), origin) is None
    gate.begin_session()
    gate.send(torch.zeros(2), gate.origin_of(gate.observe()))
    assert sent(robot) == [[0.0, 0.0]]


def test_a_dry_run_checks_everything_and_sends_nothing():
    gate, robot, _ = make_gate(GateOptions("clip", max_step=0.1, dry_run=True))
    origin = gate.origin_of(gate.observe())
    for expected in (0.1, 0.2):
        out = gate.send(torch.tensor([5.0, 0.0]), origin)
        torch.testing.assert_close(out, torch.tensor([expected, 0.0]))
    assert robot.sent == []
    assert gate.log.counts == {("limits", "clipped"): 2}


@pytest.mark.parametrize(
    "field",
    ["action_names", "action_units", "action_low", "control_frequency_hz", "state_dim"],
)
def test_a_robot_that_does_not_declare_what_is_checked_is_refused(field):
    robot = FakeRobot()
    changes = {field: None}
    if field == "action_low":
        changes["action_high"] = None
    if field == "state_dim":
        changes |= {"state_names": None, "state_units": None}
    robot.metadata = replace(robot.metadata, **changes)
    with pytest.raises(MetadataError, match=rf"declare \['{field}'"):
        SafetyGate(robot)


@pytest.mark.parametrize(
    "change",
    [
        {"action_names": ("elbow", "shoulder")},
        {"action_units": ("deg", "deg")},
        {"action_reference": ("delta", "delta")},
        {"control_frequency_hz": 10.0},
    ],
)
def test_what_acts_in_another_order_unit_reference_or_rate_is_not_connected(change):
    robot = FakeRobot()
    acting = replace(robot.metadata, **change)
    with pytest.raises(IncompatibleMetadataError, match=next(iter(change))):
        SafetyGate(robot).connect(acting)
    assert robot.events == []


def test_a_robot_that_turns_out_to_be_another_one_is_disconnected():
    class Renamed(FakeRobot):
        def connect(self):
            super().connect()
            names = self.metadata.action_names[::-1]
            self.metadata = replace(self.metadata, action_names=names)

    robot = Renamed()
    with pytest.raises(IncompatibleMetadataError, match="action_names"):
        SafetyGate(robot).connect()
    assert robot.events == ["connect", "disconnect"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda td: td["observation"].set("state", torch.zeros(3)), r"\[2\].*\(3,\)"),
        (lambda td: td["observation", "state"].fill_(math.nan), "finite"),
        (lambda td: td.pop("observed_at_s"), "observed_at_s"),
    ],
)
def test_an_observation_other_than_declared_is_refused(spoil, message):
    class Spoilt(FakeRobot):
        def observe(self):
            out = super().observe()
            spoil(out)
            return out

    gate = SafetyGate(Spoilt(clock=FakeClock()), clock=FakeClock())
    gate.connect()
    gate.begin_session()
    with pytest.raises(SchemaError, match=message):
        gate.observe()


def test_an_observation_of_the_future_says_that_there_are_two_clocks():
    gate = SafetyGate(FakeRobot(clock=FakeClock(1.0)), clock=FakeClock())
    gate.connect()
    with pytest.raises(ExecutionError, match="one clock"):
        gate.observe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_violation": "ignore"}, "on_violation"),
        ({"watchdog_s": 0.0}, "watchdog_s"),
        ({"max_action_age_s": math.inf}, "max_action_age_s"),
    ],
)
def test_no_check_can_be_switched_off(options, message):
    with pytest.raises(ValueError, match=message):
        GateOptions(**options)


MESSAGE = st.fixed_dictionaries(
    {
        "action": st.lists(
            st.one_of(
                st.floats(-1.5, 1.5, width=32),
                st.sampled_from([math.nan, math.inf, 1e38]),
            ),
            min_size=2,
            max_size=2,
        ),
        "answers": st.integers(0, 30),  # which observation; later ones are reordered
        "planned_before_s": st.sampled_from([0.0, 0.5, 2.9, 3.2]),
        "advance_s": st.sampled_from([0.0, 0.01, 0.033, 0.2, 0.45, 0.7]),
        "before": st.sampled_from(["observe", "observe", "nothing", "session"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["hold", "clip", "refuse"]),
    st.sampled_from([None, 0.3]),
    st.lists(MESSAGE, min_size=1, max_size=25),
)
def test_the_robots_log_never_contains_an_illegal_stale_or_foreign_action(
    mode, max_step, messages
):
    """A naive reference says of every message whether it may be sent as it is."""
    gate, robot, clock = make_gate(GateOptions(mode, max_step=max_step))
    clock.advance_s(10.0)
    gate.begin_session()
    observed = [gate.observe()]
    legal_session, answered, last = observed[0]["session_id"].item(), -1.0, None
    for message in messages:
        if message["before"] == "session":
            gate.begin_session()
            answered, last = -1.0, None
        if message["before"] != "nothing":
            observed.append(gate.observe())
            legal_session = observed[-1]["session_id"].item()
        td = observed[min(message["answers"], len(observed) - 1)]
        origin = gate.origin_of(td)
        planned_s = origin.observed_at_s - message["planned_before_s"]
        clock.advance_s(message["advance_s"])
        action, now_s, count = (
            torch.tensor(message["action"], dtype=torch.float32),
            clock.now_s(),
            len(robot.sent),
        )
        is_stale = (
            origin.session != legal_session
            or origin.observed_at_s < answered
            or now_s - origin.observed_at_s > 0.5
            or now_s - planned_s > 3.0
        )
        reference = td["observation", "state"] if last is None else last
        if last is None:
            reference = next(
                x["observation", "state"]
                for x in observed
                if x["session_id"].item() == legal_session
            )
        numbers = action.tolist()
        is_legal = all(math.isfinite(x) and -1 <= x <= 1 for x in numbers) and (
            max_step is None or ((action - reference).abs() <= max_step + 1e-6).all()
        )
        try:
            gate.send(action, replace(origin, planned_at_s=planned_s))
        except RobotStoppedError:
            assert len(robot.sent) == count
            return
        except (StaleActionError, ActionGuardError):
            assert mode == "refuse"
            assert len(robot.sent) == count
            continue
        new = [sent_action for _, sent_action in robot.sent[count:]]
        if is_stale:
            assert len(new) == (last is not None)
            assert all(torch.equal(sent_action, last) for sent_action in new)
            continue
        if is_legal:
            assert len(new) == 1
            assert torch.equal(new[0], action)
        for sent_action in new:
            assert sent_action.isfinite().all()
            assert (sent_action.abs() <= 1).all()
            if max_step is not None:
                assert ((sent_action - reference).abs() <= max_step + 1e-6).all()
        if is_legal or (mode == "clip" and all(map(math.isfinite, numbers))):
            answered = origin.observed_at_s
        if new:
            last = new[0]
    assert len(robot.sent) <= len(messages)


def test_every_observation_carries_the_session():
    gate, _, _ = make_gate()
    first = gate.observe()
    assert isinstance(first, TensorDict)
    assert first["session_id"].item() == gate.session
    gate.begin_session()
    assert gate.observe()["session_id"].item() != first["session_id"].item()


def test_nothing_is_sent_after_a_stop_from_another_thread_has_returned():
    gate, robot, _ = make_gate()
    origin = gate.origin_of(gate.observe())
    counts = []

    def stop():
        while len(robot.sent) < 200:
            pass
        gate.stop("button")
        counts.append(len(robot.sent))

    thread = threading.Thread(target=stop)
    thread.start()
    sending = (gate.send(torch.tensor([0.5, 0.0]), origin) for _ in repeat(None))
    with pytest.raises(RobotStoppedError, match="button"):
        deque(sending, maxlen=0)
    thread.join()
    assert counts == [len(robot.sent)]


def test_nothing_of_the_package_but_the_gate_sends_to_a_robot():
    package = Path(torchrl_vla.__path__[0])
    senders = {
        (path.name, ast.unparse(node.func.value).removeprefix("self."))
        for folder in ("runtime", "cli", "recipes", "evaluation")
        for path in (package / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "send"
        and "socket" not in ast.unparse(node.func.value)
    }
    assert senders == {
        ("safety_gate.py", "_robot"),
        ("robot_env.py", "gate"),
        ("handover.py", "gate"),
    }
