"""LeRobot's names and ours are each other's inverses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.schema import SchemaError, to_canonical, to_lerobot

_PAIRS = {
    "observation.image": ("observation", "image"),
    "observation.images.front": ("observation", "image", "front"),
    "observation.images.arm.left": ("observation", "image", "arm.left"),
    "observation.state": ("observation", "state"),
    "observation.environment_state": ("observation", "environment_state"),
    "observation.effort": ("observation", "effort"),
    "action": "action",
    "next.reward": ("next", "reward"),
    "next.done": ("next", "done"),
    "next.success": ("next", "success"),
    "episode_index": "episode_index",
    "frame_index": "frame_index",
    "timestamp": "timestamp",
    "task_index": "task_index",
    "index": "dataset_index",
    "task": "language_instruction",
    "subtask.name": "subtask.name",
}


@pytest.mark.parametrize("name", _PAIRS)
def test_every_name_of_the_table_goes_both_ways(name):
    assert to_canonical(name) == _PAIRS[name]
    assert to_lerobot(_PAIRS[name]) == name


def test_a_key_may_be_written_nested():
    assert to_lerobot(("observation", ("image", "front"))) == "observation.images.front"


@given(st.from_regex(r"(observation\.|next\.|observation\.images\.)?[a-z_.]{1,9}"))
def test_a_name_that_has_a_key_comes_back(name):
    assert to_lerobot(to_canonical(name)) == name


@pytest.mark.parametrize("name", ["dataset_index", "language_instruction"])
def test_a_feature_with_one_of_our_own_names_is_refused(name):
    with pytest.raises(SchemaError, match=f"got '{name}', which is the"):
        to_canonical(name)


@pytest.mark.parametrize(
    "key",
    ["index", "task", ("observation", "a", "b"), ("next", "observation", "state")],
)
def test_a_key_without_a_name_is_refused(key):
    with pytest.raises(SchemaError, match="expected a key that LeRobot has a name for"):
        to_lerobot(key)
