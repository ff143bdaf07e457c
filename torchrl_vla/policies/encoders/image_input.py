"""Preparation of images for a network: checks, resizing, normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from torchrl_vla._internal.option_names import Resize as Resize
from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.schema import SchemaError
from torchrl_vla.transforms import ResizeWithPad


@dataclass(frozen=True)
class ImageInput:
    """Size and normalization of the images that a network takes.

    Args:
        size: ``(h, w)``; None = any.
        mean: of each channel, subtracted from values in 0..1.
        std: of each channel; divides the difference.
        resize: what happens to an image of another size.

    Raises:
        ValueError: resizing without a size to resize to.

    Examples:
        >>> import torch
        >>> take = ImageInput(size=(2, 2), mean=(0.5,), std=(0.5,))
        >>> take.prepare("Example", torch.full((1, 1, 2, 2), 255).byte())
        tensor([[[[1., 1.],
                  [1., 1.]]]])
        >>> take.prepare("Example", torch.zeros(1, 1, 4, 4))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Example: expected images of (h, w) = (2, 2), \
got (4, 4). Ask for resizing by name: resize="stretch", "pad" or "crop".
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: Resize = "refuse"

    def __post_init__(self) -> None:
        if self.size is None and self.resize != "refuse":
            raise ValueError(
                f"ImageInput: expected a size for resize={self.resize!r}, got None. "
                "Give the (h, w) that the network takes."
            )

    def prepare(self, caller: str, images: Tensor) -> Tensor:
        """Return normalized float images of the network's size.

        Args:
            caller: opens the error messages.
            images: uint8 or float in 0..1, ``[N, C, h, w]``.

        Raises:
            SchemaError: they are laid out otherwise, out of range, or of another size.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != len(self.mean):
            is_hwc = len(shape) == 4 and shape[-1] == len(self.mean)
            hint = "That is HWC: use image.movedim(-1, -3)." if is_hwc else ""
            raise SchemaError(
                f"{caller}: expected images [N, C={len(self.mean)}, h, w], got "
                f"{list(shape)}. {hint}".rstrip()
            )
        check_image_range(images, caller)
        x = images / 255.0 if not images.is_floating_point() else images
        if self.size is not None and shape[2:] != self.size:
            x = self._resized(caller, x, self.size)
        # Filled on the device: a CUDA graph takes no copy of numbers from the host.
        mean, std = (
            torch.cat([x.new_full((1, 1, 1, 1), value) for value in values], 1)
            for values in (self.mean, self.std)
        )
        return (x - mean) / std

    def _resized(self, caller: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = x.shape[-2:]
        if self.resize == "refuse":
            raise SchemaError(
                f"{caller}: expected images of (h, w) = {size}, got {(height, width)}. "
                'Ask for resizing by name: resize="stretch", "pad" or "crop".'
            )
        if self.resize == "pad":
            return ResizeWithPad(*size).convert_image(x)
        new = size
        if self.resize == "crop":
            ratio = max(size[0] / height, size[1] / width)
            new = (
                max(round(height * ratio), size[0]),
                max(round(width * ratio), size[1]),
            )
        x = interpolate(x, new, mode="bilinear", align_corners=False, antialias=True)
        top, left = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
        x = x[..., top : top + size[0], left : left + size[1]]
        return x.clamp(0, 1)  # antialiasing rounds to 1 + 1e-7
