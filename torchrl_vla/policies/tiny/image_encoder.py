"""A small image encoder that looks for what the instruction names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    as_features,
)
from torchrl_vla.policies.encoders.image_input import ImageInput
from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.schema import SchemaError


class KeypointImageEncoder(ImageEncoder):
    """Encode an image as the places where language-conditioned features are strong.

    Convolutions, then FiLM (the instruction scales and shifts each channel; Perez et
    al., AAAI 2018), then the mean position of each channel under its own softmax
    (spatial softmax; Levine et al., JMLR 2016): "where is the red thing" in two
    numbers. ``n_keypoints`` of them and the channels' means are the output.

    Args:
        text_dim: size of the instruction's encoding.
        channels: ``C``, channels of the image.
        width: channels of the convolutions.
        n_keypoints: how many places to report.

    Examples:
        >>> import torch
        >>> encoder = KeypointImageEncoder(text_dim=8)
        >>> image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> encoder(image, torch.zeros(2, 8)).shape[-1] == encoder.out_dim
        True
    """

    def __init__(
        self,
        text_dim: int,
        *,
        channels: int = 3,
        width: int = 48,
        n_keypoints: int = 16,
    ) -> None:
        half = (0.5,) * channels
        super().__init__(width, ImageInput(mean=half, std=half))
        self.channels = channels
        self.out_dim = 2 * n_keypoints + width
        self.stem = nn.Conv2d(channels, width, 4, stride=4)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(text_dim, 2 * width)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.heat = nn.Conv2d(width, n_keypoints, 1)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Encode images ``[N, C, h, w]`` given texts ``[N, E]`` as ``[N, out_dim]``.

        Raises:
            SchemaError: the image is not CHW uint8, or float in ``[0, 1]``.
        """
        x = self._convolve(self._to_float(image))
        scale, shift = self.film(text).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        x = gelu(x * (1 + scale) + shift)
        x = x + gelu(self.look(x))
        return torch.cat([_mean_position(self.heat(x)), x.mean((-2, -1))], -1)

    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Encode without a text: what the convolutions make of each 4 x 4 patch."""
        return as_features(self._convolve(pixels))

    def _convolve(self, pixels: Tensor) -> Tensor:
        # GELU, not ReLU: units that die left some trainings, for good, without an eye
        # for one of the colors.
        return gelu(self.mix(gelu(self.stem(pixels))))

    def _to_float(self, image: Tensor) -> Tensor:
        shape = list(image.shape)
        if image.ndim != 4 or shape[-3] != self.channels or min(shape[-2:]) < 8:
            is_hwc = image.ndim == 4 and shape[-1] == self.channels
            hint = "That is HWC: use image.movedim(-1, -3)." if is_hwc else ""
            raise SchemaError(
                f"KeypointImageEncoder: expected images [N, C={self.channels}, h >= 8, "
                f"w >= 8], got {shape}. {hint}".rstrip()
            )
        check_image_range(image, "KeypointImageEncoder")
        # Pixels' channels side by side: faster, and each row is computed alike in
        # batches of any size (see TinyBackbone).
        # By moves: vmap knows no memory format.
        x = image.to(self.stem.weight.dtype).movedim(-3, -1).contiguous()
        x = x.movedim(-1, -3)
        return x / 127.5 - 1.0 if image.dtype == torch.uint8 else x * 2.0 - 1.0


def _mean_position(heat: Tensor) -> Tensor:
    """Return each channel's mean (x, y) in ``[-1, 1]`` under its softmax."""
    height, width = heat.shape[-2:]
    weights = heat.flatten(-2).softmax(-1).unflatten(-1, (height, width))
    x = torch.linspace(-1, 1, width, device=heat.device, dtype=heat.dtype)
    y = torch.linspace(-1, 1, height, device=heat.device, dtype=heat.dtype)
    return torch.cat([(weights.sum(-2) * x).sum(-1), (weights.sum(-1) * y).sum(-1)], -1)
