"""A small image encoder that looks for what the instruction names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_vla.schema import SchemaError


class KeypointImageEncoder(nn.Module):
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
        super().__init__()
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
        x = torch.relu(self.stem(self._to_float(image)))
        x = torch.relu(self.mix(x))
        scale, shift = self.film(text).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        x = torch.relu(x * (1 + scale) + shift)
        x = x + torch.relu(self.look(x))
        return torch.cat([_mean_position(self.heat(x)), x.mean((-2, -1))], -1)

    def _to_float(self, image: Tensor) -> Tensor:
        shape = tuple(image.shape)
        if shape[-3] != self.channels:
            hint = (
                " That is HWC: permute it." if shape[-1] == self.channels else ""
            )
            raise SchemaError(
                f"KeypointImageEncoder: expected images [*B, C={self.channels}, h, w], "
                f"got {shape}.{hint}"
            )
        dtype = self.stem.weight.dtype
        if image.dtype == torch.uint8:
            return image.to(dtype) / 127.5 - 1.0
        if not image.is_floating_point():
            raise SchemaError(
                "KeypointImageEncoder: expected uint8 images (0..255) or float images "
                f"(0..1), got {image.dtype}."
            )
        if not torch.compiler.is_compiling() and image.numel():
            low, high = torch.aminmax(image)
            if low < 0 or high > 1:
                raise SchemaError(
                    "KeypointImageEncoder: expected float images in 0..1, got values "
                    f"from {low.item():g} to {high.item():g}. Divide by 255, or keep "
                    "uint8."
                )
        return image.to(dtype) * 2.0 - 1.0


def _mean_position(heat: Tensor) -> Tensor:
    """Return each channel's mean (x, y) in ``[-1, 1]`` under its softmax."""
    height, width = heat.shape[-2:]
    weights = heat.flatten(-2).softmax(-1).unflatten(-1, (height, width))
    x = torch.linspace(-1, 1, width, device=heat.device, dtype=heat.dtype)
    y = torch.linspace(-1, 1, height, device=heat.device, dtype=heat.dtype)
    return torch.cat([(weights.sum(-2) * x).sum(-1), (weights.sum(-1) * y).sum(-1)], -1)
