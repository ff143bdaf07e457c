from __future__ import annotations

import pytest
import torch

from torchrl_vla.policies import KeypointImageEncoder
from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.policies.tiny.image_encoder import _mean_position
from torchrl_vla.schema import SchemaError


def encoder(**options) -> KeypointImageEncoder:
    torch.manual_seed(0)
    return KeypointImageEncoder(8, **options)


def test_uint8_and_float_images_of_the_same_image_are_encoded_alike():
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    net, text = encoder(), torch.randn(2, 8)
    out = net(image, text)
    assert out.shape == (2, net.out_dim) == (2, 2 * 16 + 48)
    torch.testing.assert_close(net(image / 255, text), out, rtol=1e-4, atol=1e-5)


def test_the_text_decides_what_is_looked_for():
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(
        2, -1, -1, -1
    )
    net, text = encoder(), torch.randn(2, 8)
    one, other = net(image, text)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("row", "column", "x", "y"), [(0, 0, -1, -1), (0, 4, 1, -1), (2, 2, 0, 1)]
)
def test_a_keypoint_is_where_the_heat_is(row, column, x, y):
    heat = torch.full((1, 1, 3, 5), -100.0)
    heat[0, 0, row, column] = 0.0
    torch.testing.assert_close(
        _mean_position(heat), torch.tensor([[float(x), float(y)]])
    )


def test_even_heat_is_the_middle():
    position = _mean_position(torch.ones(2, 3, 4, 6))
    torch.testing.assert_close(position, torch.zeros(2, 6))


def test_as_many_channels_as_declared():
    net = encoder(channels=1, n_keypoints=2, width=4)
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert net(image, torch.zeros(1, 8)).shape == (1, 8)
    with pytest.raises(
        SchemaError,
        match=r"^KeypointImageEncoder: expected images \[N, C=1, h >= 8, w >= 8\], got "
        r"\[1, 3, 8, 8\]\.$",
    ):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8))


def test_hwc_images_are_told_so():
    with pytest.raises(
        SchemaError,
        match=r"got \[1, 16, 16, 3\]\. That is HWC: use image\.movedim\(-1, -3\)\.$",
    ):
        encoder()(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 8))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 7, 16), (1, 3, 16, 7)])
def test_images_have_four_dimensions_and_eight_pixels(shape):
    with pytest.raises(SchemaError, match=r"h >= 8, w >= 8\], got \["):
        encoder()(torch.zeros(shape, dtype=torch.uint8), torch.zeros(1, 8))


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0, torch.nan])
def test_a_float_image_outside_its_range_is_refused(value):
    image = torch.full((1, 3, 8, 8), 0.5)
    image[0, 1, 2, 3] = value
    with pytest.raises(
        SchemaError,
        match=r"^Camera: expected float images in 0\.\.1, got values from .* to .*\. "
        r"Divide by 255, or keep uint8\.$",
    ):
        check_image_range(image, "Camera")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
def test_other_dtypes_than_uint8_and_float_are_refused(dtype):
    with pytest.raises(
        SchemaError,
        match=rf"^Camera: expected uint8 images \(0\.\.255\) or float images "
        rf"\(0\.\.1\), got {dtype}\.$",
    ):
        check_image_range(torch.zeros(1, 3, 8, 8, dtype=dtype), "Camera")


def test_images_in_their_range_pass_and_so_do_none():
    for image in (
        torch.tensor([0, 255], dtype=torch.uint8),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.0, 1.0], dtype=torch.bfloat16),
        torch.zeros(0, 3, 8, 8),
    ):
        assert check_image_range(image, "Camera") is None
