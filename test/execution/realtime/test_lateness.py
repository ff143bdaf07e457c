from __future__ import annotations

import pytest

from torchrl_vla.execution import Lateness
from torchrl_vla.schema import RobotDatasetMetadata


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reaction": "guess"}, r"\['wait', 'hold', 'repeat', 'zero', 'stop'\], got"),
        ({"timeout_s": -1.0}, r"timeout_s >= 0, in seconds, got -1.0"),
        ({"timeout_s": float("nan")}, r"timeout_s >= 0, in seconds, got nan"),
        ({"reaction": "hold", "max_late_steps": -1}, r"max_late_steps >= 0, got -1"),
        ({"max_late_steps": 3}, r"'wait', which has no late steps, got 3"),
    ],
)
def test_what_is_no_reaction_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Lateness(**options)


@pytest.mark.parametrize("reaction", ["wait", "hold", "repeat", "stop"])
def test_only_zero_sets_dimensions_to_zero(reaction):
    assert Lateness(reaction).zeroed("caller", "absolute", None) is None


def test_zero_sets_what_is_declared_as_delta_or_velocity():
    robot = RobotDatasetMetadata(
        "robot",
        action_dim=3,
        action_reference=("delta", "absolute", "absolute"),
        action_units=("m", "rad/s", "rad"),
    )
    zeroed = Lateness("zero").zeroed("caller", "absolute", robot)
    assert zeroed.tolist() == [True, True, False]
    assert Lateness("zero").zeroed("caller", "delta", None).tolist() == [True]


def test_zero_is_refused_where_nothing_is_delta_or_velocity():
    robot = RobotDatasetMetadata("robot", action_dim=1, action_units="rad")
    for metadata in (None, robot):
        with pytest.raises(ValueError, match=r"caller: expected deltas or velocities"):
            Lateness("zero").zeroed("caller", "absolute", metadata)


def test_a_delta_is_not_held():
    with pytest.raises(ValueError, match=r"got 'hold': a delta that is held moves on"):
        Lateness("hold").zeroed("caller", "delta", None)
