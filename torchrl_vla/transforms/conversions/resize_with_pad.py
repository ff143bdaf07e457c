"""Resizing of images that keeps their shape and pads the rest."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey
from torch import Tensor
from torch.nn.functional import interpolate, pad

from torchrl_vla.schema import IMAGE_KEY
from torchrl_vla.transforms.conversions.image_conversion import ImageConversion


class ResizeWithPad(ImageConversion):
    """Resize images without distortion and pad them to one size with black borders.

    The larger side fills the new size, and the other is centred, as openpi does for
    pi0. Resizing is bilinear with antialiasing, like Pillow's. A uint8 image stays
    uint8.

    **Reads** and **writes** ``("observation", "image")`` uint8 or float ``[*B, C, h,
    w]``, or a sub-tensordict of cameras, and that under ``next``.

    Args:
        height: of the result.
        width: of the result.

    Keyword Args:
        in_keys: images, or sub-tensordicts of cameras.

    Raises:
        MissingKeyError: there is no image at a key.
        SchemaError: it is no image.

    Examples:
        >>> import torch
        >>> resize = ResizeWithPad(4, 4)
        >>> image = torch.full((1, 2, 4), 9, dtype=torch.uint8)
        >>> resize.convert_image(image)
        tensor([[[0, 0, 0, 0],
                 [9, 9, 9, 9],
                 [9, 9, 9, 9],
                 [0, 0, 0, 0]]], dtype=torch.uint8)
        >>> resize.without_padding(resize.convert_image(image), (2, 4)).shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        in_keys: Sequence[NestedKey] = (IMAGE_KEY,),
    ) -> None:
        super().__init__((height, width), in_keys)

    def convert_image(self, image: Tensor) -> Tensor:
        """Return ``[..., C, height, width]`` of ``[..., C, h, w]``."""
        self._check(image)
        if not image.numel():  # an empty batch
            return image.new_zeros((*image.shape[:-2], *self.size))
        content, (top, left) = self._placement(image.shape[-2], image.shape[-1])
        flat = image.reshape(-1, *image.shape[-3:])
        if content != tuple(image.shape[-2:]):
            exact = flat if flat.is_floating_point() else flat.float()
            resized = interpolate(
                exact, content, mode="bilinear", align_corners=False, antialias=True
            )
            if image.is_floating_point():
                flat = resized.clamp_(0, 1)  # antialiasing rounds to 1 + 1e-7
            else:
                flat = resized.round_().clamp_(0, 255).to(image.dtype)
        bottom = self.size[0] - content[0] - top
        right = self.size[1] - content[1] - left
        padded = pad(flat, (left, right, top, bottom))
        return padded.reshape(*image.shape[:-2], *self.size)

    def without_padding(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Cut the borders off again.

        Args:
            image: ``[..., C, height, width]``, as :meth:`convert_image` made it.
            size: height and width that it was made of.

        Returns:
            The content, in the size to which it was resized.
        """
        (height, width), (top, left) = self._placement(*size)
        return image[..., top : top + height, left : left + width]

    def _placement(
        self, height: int, width: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the content's size and where it begins."""
        ratio = max(height / self.size[0], width / self.size[1])
        content = (max(int(height / ratio), 1), max(int(width / ratio), 1))
        top, left = (
            (whole - part) // 2 for whole, part in zip(self.size, content, strict=True)
        )
        return content, (top, left)
