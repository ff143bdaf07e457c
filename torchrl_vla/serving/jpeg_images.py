"""JPEG encoding of images on the wire."""

from __future__ import annotations

import io
import struct
from math import prod

import torch
from torch import Tensor

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import WireError

_CHANNELS, _LENGTH = 3, struct.Struct("<I")
#: Pixels of one image; a small JPEG may claim to be a huge one.
_MOST_PIXELS = 1 << 25


def is_photo(tensor: Tensor) -> bool:
    """Return whether a tensor holds RGB images, uint8 ``[..., 3, h, w]``."""
    return (
        tensor.dtype == torch.uint8
        and tensor.ndim >= 3
        and tensor.shape[-3] == _CHANNELS
        and tensor.numel() > 0
    )


def encode_jpegs(images: Tensor, quality: int) -> bytes:
    """Return JPEG files, each behind its length.

    Args:
        images: uint8 ``[..., 3, h, w]``, RGB.
        quality: 1..95.
    """
    pillow = import_extra("PIL.Image", "datasets", "TensorDictCodec(jpeg_quality=...)")
    parts = []
    for image in images.detach().cpu().reshape(-1, *images.shape[-3:]):
        file = io.BytesIO()
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        pillow.fromarray(pixels).save(file, "JPEG", quality=quality)
        parts += [_LENGTH.pack(file.tell()), file.getvalue()]
    return b"".join(parts)


def decode_jpegs(data: bytes, shape: tuple[int, ...], at: str) -> Tensor:
    """Return the images of JPEG files.

    Args:
        data: of :func:`encode_jpegs`.
        shape: ``[..., 3, h, w]`` that the images must have.
        at: names the place in errors.

    Raises:
        WireError: they are no JPEG files of that size.
    """
    pillow = import_extra("PIL.Image", "datasets", "TensorDictCodec")
    if len(shape) < 3 or shape[-3] != _CHANNELS or shape[-1] * shape[-2] > _MOST_PIXELS:
        raise WireError(
            f"TensorDictCodec: expected [..., 3, h, w] at {at}, got {shape}."
        )
    images, start = [], 0
    for _ in range(prod(shape[:-3])):
        length = _LENGTH.unpack_from(data, start)[0] if start + 4 <= len(data) else -1
        begin, start = start + 4, start + 4 + length
        if length < 0 or start > len(data):
            raise WireError(
                f"TensorDictCodec: expected whole images at {at}, got less."
            )
        images.append(_decode(pillow, data[begin:start], shape, at))
    if start != len(data) or not images:
        raise WireError(f"TensorDictCodec: expected {shape} at {at}, got more or none.")
    return torch.stack(images).reshape(shape)


def _decode(pillow, file: bytes, shape: tuple[int, ...], at: str) -> Tensor:
    height, width = shape[-2:]
    try:
        image = pillow.open(io.BytesIO(file), formats=["JPEG"])
        if image.size != (width, height) or image.mode != "RGB":
            raise WireError(
                f"TensorDictCodec: expected an RGB image of {width} x {height} at "
                f"{at}, got {image.mode} of {image.size}."
            )
        pixels = bytearray(image.tobytes())
    except WireError:
        raise
    except Exception as error:  # Pillow raises all kinds at damaged files
        raise WireError(
            f"TensorDictCodec: expected a JPEG at {at}, got {type(error).__name__}."
        ) from error
    flat = torch.frombuffer(pixels, dtype=torch.uint8)
    return flat.view(height, width, _CHANNELS).permute(2, 0, 1).contiguous()
