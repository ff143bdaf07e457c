from __future__ import annotations

import pytest
import torch

from torchrl_vla.policies.encoders.image_input import ImageInput
from torchrl_vla.schema import SchemaError


def prepare(image_input, images):
    return image_input.prepare("Test", images)


def test_uint8_and_float_images_become_the_same_normalized_numbers():
    take = ImageInput(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    images = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)  # 0.2
    expected = torch.tensor([-0.6, -0.2, 0.2])
    for given in (images, images / 255):
        got = prepare(take, given)
        torch.testing.assert_close(got[0, :, 0, 0], expected)
        assert got.dtype == torch.float32


def test_an_image_of_another_size_is_refused_by_default():
    with pytest.raises(
        SchemaError, match=r"\(h, w\) = \(4, 4\), got \(4, 6\).*resize="
    ):
        prepare(ImageInput(size=(4, 4)), torch.zeros(1, 3, 4, 6))


def test_stretch_changes_the_shape_pad_adds_black_and_crop_keeps_the_centre():
    image = torch.zeros(1, 1, 4, 8)
    image[..., 2:6] = 1.0  # the middle half of the columns
    plain = {"mean": (0.0,), "std": (1.0,), "size": (4, 4)}
    stretch = prepare(ImageInput(resize="stretch", **plain), image)
    assert stretch.shape == (1, 1, 4, 4)
    assert stretch[0, 0, 0].argmax() in (1, 2)
    crop = prepare(ImageInput(resize="crop", **plain), image)
    assert torch.equal(crop, torch.ones(1, 1, 4, 4))
    pad = prepare(ImageInput(resize="pad", **plain), image)
    assert torch.equal(pad[0, 0, 0], torch.zeros(4))  # a black row above
    assert pad[0, 0, 1].max() > 0.5


def test_crop_enlarges_a_small_image_until_it_covers_the_size():
    crop = ImageInput(size=(6, 6), mean=(0.0,), std=(1.0,), resize="crop")
    got = prepare(crop, torch.full((2, 1, 2, 3), 0.5))
    assert torch.allclose(got, torch.full((2, 1, 6, 6), 0.5))


def test_channels_last_is_refused_with_the_remedy():
    with pytest.raises(SchemaError, match=r"\[2, 8, 8, 3\].*movedim"):
        prepare(ImageInput(), torch.zeros(2, 8, 8, 3))


def test_floats_beyond_one_are_refused():
    with pytest.raises(SchemaError, match=r"0\.\.1"):
        prepare(ImageInput(), torch.full((1, 3, 2, 2), 255.0))


def test_resizing_needs_a_size():
    with pytest.raises(ValueError, match=r"size for resize='pad'"):
        ImageInput(resize="pad")
