"""Difference between the images of two paths that should be equal."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.diagnosis.finding import Finding

#: Mean difference of two images, in 0..1, below which they are equal.
_TOLERANCE = 1 / 255
_CHANGES = {
    "channel order": {"BGR for RGB (channels reversed)": lambda x: x.flip(-3)},
    "image orientation": {
        "upside down": lambda x: x.flip(-2),
        "mirrored": lambda x: x.flip(-1),
        "rotated by 180 degrees": lambda x: x.flip(-2, -1),
    },
}


def to_unit(image: Tensor) -> Tensor:
    """Return an image as double; uint8 is divided by 255."""
    return image.double() / 255 if image.dtype == torch.uint8 else image.double()


def value_range(image: Tensor) -> str:
    """Return dtype, smallest and largest value of an image as text."""
    dtype = str(image.dtype).removeprefix("torch.")
    return f"{dtype} in {float(image.min()):.4g}..{float(image.max()):.4g}"


def compare_images(camera: str, expected: Tensor, got: Tensor) -> Finding | None:
    """Name the difference between two batches of images ``[..., C, h, w]``, or None.

    Args:
        camera: its name, for the message.
        expected: of the training path.
        got: of the acting path.
    """
    sizes = [list(image.shape[-3:]) for image in (expected, got)]
    if sizes[0] != sizes[1]:
        message = f"{camera!r} is [C, h, w] = {sizes[0]} in training and {sizes[1]} "
        return Finding("image size", message + "in acting")
    x, y = (to_unit(image).reshape(-1, *sizes[0]) for image in (expected, got))
    if x.shape != y.shape:
        return None  # another number of frames: the history says so
    ranges = f"{value_range(expected)} in training, {value_range(got)} in acting"
    out_of_range = got.is_floating_point() and not 0 <= float(y.min()) <= y.max() <= 1
    if out_of_range and not expected.is_floating_point():
        return Finding("image range", f"{camera!r} is {ranges}")
    miss = float((x - y).abs().mean())
    if miss <= _TOLERANCE:
        return None
    line = _line(x, y)
    if line is not None:
        message = f"{camera!r} is {ranges}: acting = {line[0]:.4g} x {line[1]:+.4g}"
        return Finding("image range", message)
    for stage, changes in _CHANGES.items():
        for text, change in changes.items():
            if float((change(x) - y).abs().mean()) < 0.25 * miss:
                message = f"{camera!r} is {text}: mean difference {miss:.4g} of 1"
                return Finding(stage, message)
    message = f"{camera!r} has a mean difference of {miss:.4g}, at most "
    return Finding("image content", message + f"{float((x - y).abs().max()):.4g}, of 1")


def _line(x: Tensor, y: Tensor) -> tuple[float, float] | None:
    """Return the slope and offset that turn one image into the other, or None."""
    spread = x - x.mean()
    power = spread.square().sum()
    if power < 1e-9:
        return None
    slope = float((spread * (y - y.mean())).sum() / power)
    offset = float(y.mean() - slope * x.mean())
    if abs(slope) < 1e-6:
        return None
    miss = (x - (y - offset) / slope).abs().mean()
    return (slope, offset) if miss <= _TOLERANCE else None
