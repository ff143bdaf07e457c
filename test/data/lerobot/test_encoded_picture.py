from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot.encoded_picture import check_picture, decode_picture
from torchrl_vla.schema import SchemaError

ORIGIN = Origin("Reader", "row 5 of camera 'front'", "Fetch it again.")
SHAPE = (3, 16, 24)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def encode(pixels, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def test_pixels_are_decoded():
    assert (decode_picture(encode(PIXELS), SHAPE, ORIGIN) == PIXELS).all()
    grey = PIXELS[..., 0]
    found = decode_picture(encode(grey), (1, 16, 24), ORIGIN)
    assert (found == grey[..., None]).all()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_whole_picture_passes(kind):
    assert check_picture(encode(PIXELS, kind), SHAPE, ORIGIN) is None


def cut(kind, part):
    data = encode(PIXELS, kind)
    return data[: int(len(data) * part)]


def flipped():
    data = bytearray(encode(PIXELS))
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize("read", [check_picture, decode_picture])
@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"hello", cut("png", 0.1), cut("png", 0.7)),
        *(cut("jpeg", 0.1), cut("jpeg", 0.7), flipped()),
        encode(PIXELS, "bmp"),
        encode(PIXELS, "tiff"),
    ],
)
def test_damaged_pictures_and_other_kinds_are_refused_by_row(read, data):
    with pytest.raises(SchemaError, match=r"a picture in row 5 of camera 'front', got"):
        read(data, SHAPE, ORIGIN)


@pytest.mark.parametrize("read", [check_picture, decode_picture])
@pytest.mark.parametrize("size", [(12_000, 16_000), (9_000, 9_000), (17, 24)])
def test_the_size_is_compared_before_a_pixel_is_decoded(read, size):
    data = encode(np.zeros(size, np.uint8))
    assert len(data) < 400_000  # bytes, for up to 192 million pixels
    with pytest.raises(SchemaError, match=r"in row 5 of camera 'front', got"):
        read(data, SHAPE, ORIGIN)


def test_another_number_of_channels_is_refused():
    with pytest.raises(SchemaError, match=r"16 x 24 with 3 channels.*got uint8 \(16"):
        decode_picture(encode(PIXELS[..., 0]), SHAPE, ORIGIN)
