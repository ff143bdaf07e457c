"""Interface of image encoders."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor, nn
from typing_extensions import Self

from torchrl_vla.policies.encoders.image_input import ImageInput
from torchrl_vla.policies.module_description import Describer


class ImageFeatures(NamedTuple):
    """What an :class:`ImageEncoder` makes of ``N`` images.

    Args:
        patches: ``[N, P, F]``, row by row from the top left.
        pooled: ``[N, G]``, one vector per image.
        grid: rows and columns of the patches; ``P`` is their product.
    """

    patches: Tensor
    pooled: Tensor
    grid: tuple[int, int]


class ImageEncoder(nn.Module, ABC):
    """Encode images as features of patches and as one vector.

    Abstract: a subclass implements :meth:`encode_pixels`. Resizing, cropping and
    normalization belong to the encoder (:attr:`image_input`), so that data never meets
    another preparation than the weights were trained with.

    A frozen encoder has no gradient and stays in evaluation mode.

    Args:
        num_features: ``F``.
        image_input: size and normalization of the images that the network takes.

    Keyword Args:
        num_pooled: ``G``; None = ``F``.
        frozen: True = the weights are not trained. Call :meth:`freeze` at the end of
            the subclass's constructor.

    Examples:
        >>> class Blocks(ImageEncoder):
        ...     def encode_pixels(self, pixels):
        ...         means = nn.functional.avg_pool2d(pixels, 4)
        ...         return as_features(means)
        >>> encoder = Blocks(3, ImageInput())
        >>> features = encoder.encode(torch.zeros(2, 3, 8, 12, dtype=torch.uint8))
        >>> features.patches.shape, features.pooled.shape, features.grid
        (torch.Size([2, 6, 3]), torch.Size([2, 3]), (2, 3))
    """

    def __init__(
        self,
        num_features: int,
        image_input: ImageInput,
        *,
        num_pooled: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_pooled = num_features if num_pooled is None else num_pooled
        self.image_input = image_input
        self.frozen = frozen

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Encode float images ``[N, C, h, w]`` that :attr:`image_input` prepared."""

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode images ``[N, C, h, w]``, uint8 or float in 0..1.

        Raises:
            SchemaError: they are laid out otherwise, out of range, or of a size that
                the encoder would have to change without having been asked to.
        """
        pixels = self.image_input.prepare(type(self).__name__, images)
        weight = next(self.parameters(), None)
        pixels = pixels if weight is None else pixels.to(weight.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode_pixels(pixels)

    def describe(self) -> str:
        """Return class and arguments as JSON: with the weights, all that decides.

        Raises:
            SchemaError: the arguments are unknown or can't be written.
        """
        description = Describer(type(self).__name__).describe(self)
        return json.dumps(description, sort_keys=True)

    def freeze(self) -> Self:
        """Take the weights out of training, where ``frozen`` is True; return itself."""
        if self.frozen:
            self.requires_grad_(False).eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)


def image_features_key(image_key: NestedKey) -> NestedKey:
    """Return where features are that were computed from the images at a key.

    Examples:
        >>> image_features_key(("observation", "image"))
        ('observation', 'image_features')
    """
    *path, name = (image_key,) if isinstance(image_key, str) else image_key
    return unravel_key((*path, f"{name}_features"))


def map_as_features(rows: Tensor) -> ImageFeatures:
    """Return stored patches ``[N, rows, columns, F]`` as features."""
    return as_features(rows.movedim(-1, -3))


def as_features(feature_map: Tensor, pooled: Tensor | None = None) -> ImageFeatures:
    """Return a feature map ``[N, F, rows, columns]`` as patches.

    Args:
        feature_map: of a convolutional network.
        pooled: ``[N, G]``; None = the mean over the map.
    """
    rows, columns = feature_map.shape[-2:]
    patches = feature_map.flatten(-2).transpose(-2, -1)
    pooled = patches.mean(-2) if pooled is None else pooled
    return ImageFeatures(patches, pooled, (rows, columns))
