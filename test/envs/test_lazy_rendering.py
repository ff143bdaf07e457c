from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.envs.lazy_rendering import RenderSpec, observation_is_needed
from torchrl_vla.schema import SchemaError


def image(number, shape=(2, 4, 3)):
    return np.full(shape, number, np.uint8)


def test_one_image_becomes_channels_first_in_the_order_of_the_environments():
    drawing = RenderSpec(lambda env: image(env), (2, 4, 3))
    drawn = drawing([7, 5])
    assert set(drawn) == set(drawing.layout) == {("observation", "image")}
    images = drawn["observation", "image"]
    assert images.shape == (2, 3, 2, 4)
    assert images[:, 0, 0, 0].tolist() == [7, 5]


def test_cameras_have_an_entry_each():
    shapes = {"top": (2, 4, 3), "wrist": (1, 1, 3)}
    drawing = RenderSpec(
        lambda env: {name: image(env, shape) for name, shape in shapes.items()},
        shapes,
    )
    drawn = drawing([1])
    assert drawn["observation", "image", "wrist"].tolist() == [[[[1]], [[1]], [[1]]]]
    assert drawing.layout["observation", "image", "top"] == (3, 2, 4)


def test_drawing_no_environment_gives_no_images_of_the_right_size():
    drawn = RenderSpec(image, (2, 4, 3))([])["observation", "image"]
    assert drawn.shape == (0, 3, 2, 4)
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (image(0, (4, 2, 3)), r"\(3, 2, 4\)}, as 'shape' says, got .*\(3, 4, 2\)}"),
        ({"top": image(0)}, r"as 'shape' says, got {.*'top'\): \(3, 2, 4\)}"),
        (image(0) / 255, r"uint8 image \[h, w, C\] at 'image', got float64"),
        (image(0, (3, 2, 5)), r"C of \(1, 3, 4\) at 'image', got shape \(3, 2, 5\)"),
        (image(0)[0], r"got uint8 of shape \(4, 3\)"),
    ],
)
def test_another_image_than_declared_is_refused(returned, message):
    with pytest.raises(SchemaError, match=message):
        RenderSpec(lambda env: returned, (2, 4, 3))(["env"])


@pytest.mark.parametrize("shape", [(2, 1), (2,)])
def test_a_policy_may_look_unless_it_is_said_that_it_does_not(shape):
    assert observation_is_needed(TensorDict({}, [2]), torch.Size([2])).tolist() == [
        True,
        True,
    ]
    td = TensorDict(observation_needed=torch.tensor([False, True]).view(shape))
    assert observation_is_needed(td, torch.Size([2])).tolist() == [False, True]


@pytest.mark.parametrize("flag", [torch.zeros(2, 1), torch.zeros(3).bool()])
def test_a_flag_that_is_not_one_bool_per_row_is_refused(flag):
    td = TensorDict(observation_needed=flag)
    with pytest.raises(
        SchemaError, match=r"bool \[2, 1\] at 'observation_needed', got torch"
    ):
        observation_is_needed(td, torch.Size([2]))
