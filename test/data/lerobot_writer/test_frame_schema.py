from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot_steps import METADATA, TABLE, TASKS, make_episode
from tensordict import NonTensorData

from torchrl_vla.data.lerobot_writer.frame_schema import (
    Feature,
    FrameSchema,
    read_tasks,
    recorded_keys,
)
from torchrl_vla.schema import (
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)


def schema_of(steps, metadata=METADATA, *, image_dtype="image", **options):
    return FrameSchema.from_steps(steps, metadata, image_dtype=image_dtype, **options)


def test_the_schema_follows_from_the_first_step():
    steps = make_episode(2, cameras=("front", "wrist"))
    names = ("height", "width", "channels")
    assert schema_of(steps, image_dtype="video").features == (
        Feature("observation.state", "float32", (3,), ("x", "y", "z")),
        Feature("observation.images.front", "video", (32, 48, 3), names),
        Feature("observation.images.wrist", "video", (32, 48, 3), names),
        Feature("action", "float32", (2,), ("dx", "dy")),
        Feature("next.reward", "float32", (1,), None),
        Feature("next.done", "bool", (1,), None),
    )


def test_a_schema_survives_its_file():
    schema = schema_of(make_episode(2))
    assert FrameSchema.from_info(schema.to_info()) == schema


def test_further_entries_of_a_rollout_need_extra_keys():
    steps = make_episode(2, cameras=())
    steps["is_init"] = torch.zeros(2, 1, dtype=torch.bool)
    steps["next", "observation", "state"] = torch.zeros(2, 3)
    steps["phase"] = torch.zeros(2)
    expected = [
        ("observation", "state"),
        "action",
        ("next", "reward"),
        ("next", "done"),
    ]
    assert recorded_keys(steps) == expected
    assert recorded_keys(steps, ["phase"]) == [*expected, "phase"]


def test_a_missing_extra_key_is_refused():
    with pytest.raises(MissingKeyError, match=r"expected \['phase'\] in the step"):
        recorded_keys(make_episode(2), ["phase"])


def test_an_extra_key_that_the_writer_numbers_itself_is_refused():
    steps = make_episode(2).set("timestamp", torch.zeros(2))
    with pytest.raises(SchemaError, match=r"does not number itself, got \['time"):
        recorded_keys(steps, ["timestamp"])


def test_a_step_without_action_is_refused():
    with pytest.raises(MissingKeyError, match=r"expected \['action'\] in the step"):
        schema_of(make_episode(2).exclude("action"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 32, 48, 3, dtype=torch.uint8), r"\[h, w, 3\]: permute it with"),
        (torch.zeros(1, 3, 32, 48), r"torch.float32 \[3, 32, 48\]. Convert floats"),
        (torch.zeros(1, 1, 32, 48, dtype=torch.uint8), r"\[1, 32, 48\]. Convert it to"),
        (torch.zeros(1, 3, 32, 48, dtype=torch.int64), r"got torch.int64 .* to RGB"),
        (torch.zeros(1, 32, 48, dtype=torch.uint8), r"got torch.uint8 \[32, 48\]"),
    ],
)
def test_an_image_that_is_not_uint8_rgb_channels_first_is_refused(image, message):
    steps = make_episode(1).set(("observation", "image", "front"), image)
    with pytest.raises(SchemaError, match=message):
        schema_of(steps)


def test_numbers_of_a_type_that_lerobot_does_not_have_are_refused():
    steps = make_episode(1).set("action", torch.zeros(1, 2, dtype=torch.bfloat16))
    with pytest.raises(SchemaError, match=r"at 'action', got torch.bfloat16"):
        schema_of(steps)


def test_text_among_the_observations_is_refused():
    steps = make_episode(1)
    steps.set(("observation", "note"), NonTensorData("hot", batch_size=[1]))
    with pytest.raises(SchemaError, match=r"at \('observation', 'note'\), got NonT"):
        schema_of(steps)


def test_a_name_with_a_slash_is_refused():
    steps = make_episode(1).set(("observation", "a/b"), torch.zeros(1, 2))
    with pytest.raises(SchemaError, match=r"without '/' and '\.\.', for a feature"):
        schema_of(steps)


@pytest.mark.parametrize("prefix", ["action", "state"])
def test_a_dimension_that_is_not_that_of_the_metadata_is_refused(prefix):
    names = tuple("abcd")
    metadata = replace(METADATA, **{f"{prefix}_names": names, f"{prefix}_dim": 4})
    with pytest.raises(MetadataError, match=rf"expected {prefix}_dim=4 values"):
        schema_of(make_episode(1), metadata)


def test_cameras_that_are_not_those_of_the_metadata_are_refused_with_both_lists():
    with pytest.raises(MetadataError, match=r"'front', 'wrist'\].*got \['top'\]"):
        schema_of(make_episode(1, cameras=("top",)))
    with pytest.raises(MetadataError, match=r"got \[\]. Record them all"):
        schema_of(make_episode(1, cameras=()))


def test_one_image_without_a_name_is_the_one_camera_of_the_metadata():
    steps = make_episode(1, cameras=())
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    steps.set(("observation", "image"), image)
    schema = schema_of(steps, replace(METADATA, cameras=("front",)))
    assert [feature.name for feature in schema.images] == ["observation.image"]


def test_metadata_without_cameras_and_dimensions_accept_any():
    schema = schema_of(make_episode(1), RobotDatasetMetadata("any"))
    assert len(schema.images) == 2
    assert [feature.names for feature in schema.numbers] == [None] * 4


def test_columns_are_the_numbers_and_images_channels_last():
    steps = make_episode(3)
    columns = schema_of(steps).columns(steps)
    np.testing.assert_array_equal(columns["action"], steps["action"].numpy())
    np.testing.assert_array_equal(
        columns["observation.images.front"],
        steps["observation", "image", "front"].permute(0, 2, 3, 1).numpy(),
    )


def test_a_number_without_a_dimension_is_one_of_shape_one():
    steps = make_episode(3).set("seed", torch.tensor([4, 5, 6]))
    schema = schema_of(steps, extra_keys=["seed"])
    assert schema.features[-1] == Feature("seed", "int64", (1,))
    assert schema.columns(steps, ["seed"])["seed"].tolist() == [[4], [5], [6]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action", torch.zeros(1, 3), r"expected shape \[2\] at 'action'.*got \[3\]"),
        (
            "action",
            torch.zeros(1, 2).double(),
            r"expected float32 at 'action'.*float64",
        ),
        (
            ("observation", "image", "front"),
            torch.zeros(1, 3, 16, 48, dtype=torch.uint8),
            r"expected shape \[3, 32, 48\] at .*got \[3, 16, 48\]",
        ),
    ],
)
def test_a_later_step_of_another_shape_or_type_is_refused(key, value, message):
    schema = schema_of(make_episode(1))
    with pytest.raises(SchemaError, match=message):
        schema.columns(make_episode(1).set(key, value))


def test_a_later_step_with_other_entries_is_refused():
    schema = schema_of(make_episode(1))
    later = make_episode(1).exclude(("next", "reward"))
    later.set(("next", "success"), torch.zeros(1, 1, dtype=torch.bool))
    message = r"without \['next.reward'\] and with \['next.success'\]"
    with pytest.raises(SchemaError, match=message):
        schema.columns(later)


@pytest.mark.parametrize("key", ["action", ("observation", "state")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(key, value):
    steps = make_episode(2)
    steps[key][1, 0] = value
    with pytest.raises(SchemaError, match=rf"expected finite numbers at .*\[{value}, "):
        schema_of(steps).columns(steps)


@pytest.mark.parametrize(
    "instruction",
    [
        TABLE.encode([TASKS[1]] * 2),
        NonTensorData(TASKS[1], batch_size=[2]),
        NonTensorData(TASKS[1]),
    ],
    ids=["ids", "batched text", "one text"],
)
def test_an_instruction_is_an_id_or_a_text(instruction):
    steps = make_episode(2)
    steps.set("language_instruction", instruction)
    assert read_tasks(steps, TABLE) == [TASKS[1]] * 2


def test_ids_without_a_table_are_refused():
    with pytest.raises(
        SchemaError, match=r"expected instructions=\.\.\. to decode the ids"
    ):
        read_tasks(make_episode(2), None)


def test_a_missing_or_blank_instruction_is_refused():
    steps = make_episode(1)
    with pytest.raises(MissingKeyError, match="expected an instruction at 'language"):
        read_tasks(steps.exclude("language_instruction"), TABLE)
    steps.set("language_instruction", NonTensorData(" ", batch_size=[1]))
    with pytest.raises(SchemaError, match=r"one instruction with words.*got \[' '\]"):
        read_tasks(steps, TABLE)
