"""Encoded pictures (PNG, JPEG) of untrusted origin."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads 40 more, and some of them call other programs.
_KINDS = ("PNG", "JPEG", "WEBP")


def check_picture(data: bytes, shape: tuple[int, int, int], origin: Origin) -> None:
    """Refuse bytes that are no picture of the declared size, without its pixels.

    Of a PNG the checksums are compared; a JPEG, which has none, is decoded at an eighth
    of its size.

    Args:
        data: the file's bytes.
        shape: declared ``(C, h, w)``.
        origin: of the bytes, with their row.

    Raises:
        SchemaError: they cannot be decoded, or have another size.
    """
    _, h, w = shape
    with origin.reading("a picture"), _open(data, origin) as picture:
        _check_size(picture.size, shape, origin)
        if picture.format == "JPEG":
            picture.draft(None, (max(1, w // 8), max(1, h // 8)))
            picture.load()
        else:
            picture.verify()


def decode_picture(
    data: bytes, shape: tuple[int, int, int], origin: Origin
) -> np.ndarray:
    """Return the pixels of a picture, uint8 ``[h, w, C]``.

    The size in its header is compared before any pixel is decoded.

    Args:
        data: the file's bytes.
        shape: declared ``(C, h, w)``.
        origin: of the bytes, with their row.

    Raises:
        SchemaError: they cannot be decoded, or have another size or depth.
    """
    with origin.reading("a picture"), _open(data, origin) as picture:
        _check_size(picture.size, shape, origin)
        pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    check_pixels(pixels, shape, origin)
    return pixels


def _open(data: bytes, origin: Origin) -> Image:
    pil = import_extra("PIL.Image", "datasets", origin.caller)
    return pil.open(io.BytesIO(data), "r", _KINDS)


def check_pixels(
    pixels: np.ndarray, shape: tuple[int, int, int], origin: Origin
) -> None:
    """Refuse decoded pixels ``[h, w, C]`` that are not of the declared size."""
    c, h, w = shape
    if pixels.shape != (h, w, c) or pixels.dtype != np.uint8:
        raise origin.refuse(_expected(shape), f"{pixels.dtype} {pixels.shape}")


def _check_size(
    size: tuple[int, int], shape: tuple[int, int, int], origin: Origin
) -> None:
    _, h, w = shape
    if size != (w, h):
        raise origin.refuse(_expected(shape), f"{size[1]} x {size[0]}")


def _expected(shape: tuple[int, int, int]) -> str:
    c, h, w = shape
    return f"uint8 images of {h} x {w} with {c} channels, as 'meta/info.json' says,"
