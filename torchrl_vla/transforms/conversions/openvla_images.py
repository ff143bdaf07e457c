"""Image preprocessing of OpenVLA and OpenVLA-OFT."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_vla.schema import IMAGE_KEY, SchemaError, import_extra
from torchrl_vla.transforms.conversions.image_conversion import ImageConversion

#: Share of the image's area that the center crop keeps, as in training.
_CROPPED_AREA = 0.9


class OpenVLAImages(ImageConversion):
    """Give images the size and the losses that OpenVLA was trained and evaluated with.

    As the published evaluation does: compress by JPEG, resize with a Lanczos kernel of
    radius 3, and cut out the middle 90 % of the area, stretched to the full size again.
    Leaving one out changes the pixels that a checkpoint sees. Normalization is left to
    the checkpoint's processor. A float image (0..1) becomes uint8, too.

    **Reads** ``("observation", "image")`` uint8 or float ``[*B, 3, h, w]``, or a
    sub-tensordict of cameras, and that under ``next``; **writes** uint8 ``[*B, 3, size,
    size]`` there.

    Args:
        size: height and width of the result.

    Keyword Args:
        center_crop: True = cut out the middle: for checkpoints that were trained with
            random crops, as the published ones were.
        jpeg_quality: 1 .. 100; None = no compression. Needs the extra ``datasets``.
        in_keys: images, or sub-tensordicts of cameras.

    Raises:
        MissingKeyError: there is no image at a key.
        SchemaError: it is no RGB image, or a float image is not in 0..1.
        MissingExtraError: Pillow is not installed, which compresses.

    Examples:
        >>> import torch
        >>> images = OpenVLAImages(8, jpeg_quality=None)
        >>> images.convert_image(torch.full((3, 16, 16), 7, dtype=torch.uint8)).unique()
        tensor([7], dtype=torch.uint8)

    Source: Kim et al., "OpenVLA", 2024; "Fine-Tuning Vision-Language-Action Models",
    2025.
    """

    def __init__(
        self,
        size: int = 224,
        *,
        center_crop: bool = True,
        jpeg_quality: int | None = 95,
        in_keys: Sequence[NestedKey] = (IMAGE_KEY,),
    ) -> None:
        super().__init__((size, size), in_keys)
        if jpeg_quality is not None:
            if not 1 <= jpeg_quality <= 100:
                raise ValueError(
                    f"OpenVLAImages: expected jpeg_quality in 1 .. 100, got "
                    f"{jpeg_quality}. None compresses nothing."
                )
            import_extra("PIL.Image", "datasets", "OpenVLAImages")
        self.center_crop = center_crop
        self.jpeg_quality = jpeg_quality

    def convert_image(self, image: Tensor) -> Tensor:
        """Return uint8 ``[..., 3, size, size]`` of ``[..., 3, h, w]``."""
        self._check(image)
        if image.shape[-3] != 3:
            raise SchemaError(
                "OpenVLAImages: expected RGB images [*B, 3, h, w], got shape "
                f"{tuple(image.shape)}."
            )
        if image.is_floating_point():
            if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
                raise SchemaError(
                    "OpenVLAImages: expected float images in [0, 1], got values from "
                    f"{image.min().item():g} to {image.max().item():g}. Divide by 255, "
                    "or keep uint8."
                )
            image = (image * 255).round().to(torch.uint8)
        if self.jpeg_quality is not None:
            image = _compress(image, self.jpeg_quality)
        resized = _resample(image.float(), self.size[0], _lanczos)
        image = resized.round_().clamp_(0, 255)
        if self.center_crop:
            # TensorFlow's conversion to uint8 scales by 255.5 and truncates.
            cropped = _resample(image / 255, self.size[0], _crop)
            image = cropped.mul_(255.5).clamp_(0, 255)
        return image.to(torch.uint8)


def _compress(image: Tensor, quality: int) -> Tensor:
    pillow = import_extra("PIL.Image", "datasets", "OpenVLAImages")
    flat = image.reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(flat)
    for row, pixels in enumerate(flat):
        file = io.BytesIO()
        pillow.fromarray(pixels).save(file, format="JPEG", quality=quality)
        decoded[row] = np.asarray(pillow.open(file))
    back = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    return back.reshape(image.shape).to(image.device)


def _resample(
    image: Tensor, size: int, weights: Callable[[int, int], Tensor]
) -> Tensor:
    rows = weights(image.shape[-2], size).to(image)
    columns = weights(image.shape[-1], size).to(image)
    return rows @ image @ columns.mT


@lru_cache(maxsize=16)
def _lanczos(size: int, new_size: int) -> Tensor:
    """Return the weights ``[new_size, size]`` of an antialiased Lanczos-3 kernel."""
    step = size / new_size
    centers = (torch.arange(new_size, dtype=torch.float64) + 0.5) * step
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    distance = (pixels - centers.unsqueeze(1)) / max(step, 1.0)
    weights = torch.sinc(distance) * torch.sinc(distance / 3)
    weights = torch.where(distance.abs() > 3, 0.0, weights)
    return (weights / weights.sum(1, keepdim=True)).float()


@lru_cache(maxsize=16)
def _crop(size: int, new_size: int) -> Tensor:
    """Return the weights ``[new_size, size]`` of a linear crop of the middle."""
    side = sqrt(_CROPPED_AREA)
    ends = ((1 - side) / 2 * (size - 1), (1 + side) / 2 * (size - 1))
    if new_size == 1:
        ends = ((size - 1) / 2,) * 2
    at = torch.linspace(*ends, new_size, dtype=torch.float64).unsqueeze(1)
    return (1 - (at - torch.arange(size)).abs()).clamp_min(0).float()
