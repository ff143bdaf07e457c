from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data.vla import preprocessing

from torchrl_vla.schema import SchemaError
from torchrl_vla.testing import check_transform
from torchrl_vla.transforms import OpenVLAImages


def random_image(*shape):
    """Smooth and noisy at once, as pictures are."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=generator) * 80
    ramp = torch.linspace(0, 170, shape[-1])
    return (noise + ramp).to(torch.uint8)


def reference(image, size, center_crop):
    """TorchRL's port of the published pipeline, without its JPEG codec."""
    resized = preprocessing._lanczos3_resize(image.float(), (size, size))
    resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    crop = preprocessing._fractional_center_crop
    return crop(resized, (size, size)) if center_crop else resized


def assert_same_pixels(ours, theirs):
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("center_crop", [True, False])
@pytest.mark.parametrize("size", [(256, 256), (120, 160), (96, 90)])
def test_the_pixels_are_those_of_torchrls_reference(size, center_crop):
    image = random_image(2, 3, *size)
    ours = OpenVLAImages(112, center_crop=center_crop, jpeg_quality=None)
    assert_same_pixels(ours.convert_image(image), reference(image, 112, center_crop))


def test_the_jpeg_is_pillows_at_quality_95():
    pillow = pytest.importorskip("PIL.Image")
    image = random_image(3, 32, 48)
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    pillow.fromarray(pixels).save(file, format="JPEG", quality=95)
    read = torch.from_numpy(np.array(pillow.open(file))).permute(2, 0, 1)
    assert not torch.equal(read, image)
    plain = OpenVLAImages(16, jpeg_quality=None)
    assert torch.equal(
        OpenVLAImages(16).convert_image(image), plain.convert_image(read)
    )


def test_the_crop_keeps_the_middle_and_drops_the_border():
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, 1:-1, 1:-1] = 200  # one pixel of 40 is less than the 1 that is cut off
    images = OpenVLAImages(40, jpeg_quality=None)
    assert images.convert_image(image)[:, 2:-2, 2:-2].unique().tolist() == [200]
    assert images.convert_image(image).min() > 0
    whole = OpenVLAImages(40, jpeg_quality=None, center_crop=False)
    assert torch.equal(whole.convert_image(image), image)


def test_a_float_image_gives_the_same_pixels_and_other_ranges_raise():
    image, images = random_image(3, 30, 30), OpenVLAImages(16, jpeg_quality=None)
    assert torch.equal(images.convert_image(image / 255), images.convert_image(image))
    # An almost black image is no image of another range.
    dark = torch.full((3, 8, 8), 1 / 255)
    assert images.convert_image(dark).unique().tolist() == [1]
    with pytest.raises(SchemaError, match=r"in \[0, 1\], got values from 0 to 1.001"):
        images.convert_image(torch.linspace(0, 1.001, 192).view(3, 8, 8))


def test_the_transform_keeps_its_contract():
    data = TensorDict({"observation": {"image": random_image(2, 3, 12, 16)}}, [2])
    keys = [("observation", "image")]
    check_transform(OpenVLAImages(8), data, reads=keys, writes=keys)


def test_what_cannot_be_raises():
    with pytest.raises(SchemaError, match=r"expected RGB images .*got shape \(1, 8, 8"):
        OpenVLAImages(8).convert_image(torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"jpeg_quality in 1 \.\. 100, got 0"):
        OpenVLAImages(8, jpeg_quality=0)
