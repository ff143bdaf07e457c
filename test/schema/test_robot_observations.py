from __future__ import annotations

import pytest
import torch

from torchrl_vla.schema import (
    ROBOT_FIELDS,
    RobotDatasetMetadata,
    declared_observations,
    position_of,
)

STATE = torch.tensor([9.0, 2.0, 1.0])
ARM = {
    "action_names": ("a", "b"),
    "action_units": ("rad", "rad"),
    "state_names": ("speed", "b", "a"),
    "state_units": ("rad/s", "rad", "rad"),
}


def test_the_position_is_found_by_name_whatever_the_order():
    found = position_of(RobotDatasetMetadata("arm", **ARM), STATE)
    assert found.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "change",
    [
        {"state_names": ("speed", "b", "c")},
        {"state_units": ("rad/s", "deg", "deg")},
        {"state_units": None},
        {"action_reference": ("absolute", "delta")},
        {"state_names": None},
    ],
)
def test_a_position_that_is_not_declared_is_not_guessed(change):
    metadata = RobotDatasetMetadata("arm", **{**ARM, "state_dim": 3, **change})
    assert position_of(metadata, STATE) is None


@pytest.mark.parametrize(
    ("cameras", "keys"),
    [
        ((), [("observation", "image")]),
        (("top",), [("observation", "image", "top")]),
    ],
)
def test_an_image_lies_under_its_cameras_name_or_alone(cameras, keys):
    metadata = RobotDatasetMetadata(
        "arm", state_dim=3, cameras=cameras, image_sizes=((3, 4, 5),)
    )
    found = declared_observations(metadata)
    assert [key for key in found if key not in (("observation", "state"),)][1:] == keys
    assert found[keys[0]] == (torch.uint8, (3, 4, 5))


def test_the_fields_that_a_robot_declares_exist():
    assert set(ROBOT_FIELDS) <= set(vars(RobotDatasetMetadata("arm", **ARM)))
