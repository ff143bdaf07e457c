from __future__ import annotations

import pytest

from torchrl_vla.errors import IncompatibleMetadataError, SettingsError
from torchrl_vla.runtime.lerobot import describe_driver
from torchrl_vla.runtime.lerobot.driver_features import check_names
from torchrl_vla.schema import RobotDatasetMetadata

ACTIONS = {"a.pos": float, "b.pos": float}
BARE = RobotDatasetMetadata("arm", action_dim=2, action_units=("deg", "percent"))


def test_names_units_and_cameras_come_from_the_features():
    features = {
        "b.pos": float,
        "a.pos": float,
        "top": (4, 6, 3),
        "top_depth": (4, 6, 1),
    }
    found = describe_driver(ACTIONS, features, BARE)
    assert found.action_names == ("a.pos", "b.pos")
    assert found.state_names == ("b.pos", "a.pos")
    assert found.state_units == ("percent", "deg")
    assert found.cameras == ("top",)
    assert found.image_sizes == ((3, 4, 6),)


def test_units_of_a_state_that_is_no_action_stay_undeclared():
    found = describe_driver(ACTIONS, {**ACTIONS, "a.vel": float}, BARE)
    assert found.state_names == ("a.pos", "b.pos", "a.vel")
    assert found.state_units is None


def test_what_is_declared_stays():
    declared = RobotDatasetMetadata(
        "arm", action_names=("b.pos", "a.pos"), state_names=("x",), cameras=("wrist",)
    )
    with pytest.raises(ValueError, match="state_names"):
        describe_driver(ACTIONS, ACTIONS, declared)
    found = describe_driver(ACTIONS, {"x": float, "wrist": (2, 2, 3)}, declared)
    assert found.action_names == ("b.pos", "a.pos")
    assert found.cameras == ("wrist",)


def test_a_driver_without_single_numbers_is_refused():
    with pytest.raises(SettingsError, match=r"single numbers .* got \['pose'\]"):
        describe_driver({"pose": (7,)}, ACTIONS, BARE)


def test_order_and_names_are_told_apart():
    check_names("Robot", "action", ("a", "b"), ["a", "b"])
    with pytest.raises(IncompatibleMetadataError, match=r"\['b', 'a'\].*another order"):
        check_names("Robot", "action", ("b", "a"), ["a", "b"])
    with pytest.raises(IncompatibleMetadataError, match=r"\['a'\].*other names"):
        check_names("Robot", "action", ("a",), ["a", "b"])
