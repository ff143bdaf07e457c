from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.diagnosis.image_difference import compare_images


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (6, 3, 4, 4), generator=generator)
    return coarse.to(torch.uint8).repeat_interleave(2, -1).repeat_interleave(2, -2)


@given(st.integers(0, 50))
def test_uint8_and_float_images_in_0_1_are_equal(seed):
    x = images(seed)
    assert compare_images("front", x, x.clone()) is None
    assert compare_images("front", x, x.float() / 255) is None


@pytest.mark.parametrize(
    ("change", "stage", "text"),
    [
        (lambda x: x[..., :6, :], "image size", "[3, 8, 8] in training and [3, 6, 8]"),
        (lambda x: x.permute(0, 2, 3, 1), "image size", "[8, 8, 3] in acting"),
        (lambda x: x.float(), "image range", "uint8 in "),
        (lambda x: x.float() / 127.5 - 1, "image range", "float32 in -"),
        (lambda x: x.float() / 255**2, "image range", "0.003922 x"),
        (lambda x: x.flip(-3), "channel order", "BGR for RGB"),
        (lambda x: x.float().flip(-3) / 255, "channel order", "BGR for RGB"),
        (lambda x: x.flip(-2), "image orientation", "upside down"),
        (lambda x: x.flip(-1), "image orientation", "mirrored"),
        (lambda x: x.flip(-1, -2), "image orientation", "rotated by 180 degrees"),
        (lambda x: x.roll(1, 0), "image content", "mean difference"),
    ],
)
def test_a_change_of_an_image_is_named(change, stage, text):
    x = images()
    found = compare_images("front", x, change(x))
    assert found.stage == stage
    assert text in found.message
    assert found.message.startswith("'front'")
