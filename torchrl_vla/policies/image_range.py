"""Refuse images whose values are not what their dtype declares."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.schema import SchemaError


def check_image_range(image: Tensor, caller: str) -> None:
    """Check that an image is uint8, or float within 0..1; nothing is guessed.

    Inside ``torch.compile`` only the dtype is checked: the values are not known there.

    Args:
        image: images of any shape.
        caller: the component that asks; opens the error message.

    Raises:
        SchemaError: the dtype is another, or a float lies outside 0..1 or is NaN.
    """
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise SchemaError(
            f"{caller}: expected uint8 images (0..255) or float images (0..1), got "
            f"{image.dtype}."
        )
    if torch.compiler.is_compiling() or not image.numel():
        return
    low, high = torch.aminmax(image)
    if not (low >= 0 and high <= 1):  # NaN, too
        raise SchemaError(
            f"{caller}: expected float images in 0..1, got values from {low.item():g} "
            f"to {high.item():g}. Divide by 255, or keep uint8."
        )
