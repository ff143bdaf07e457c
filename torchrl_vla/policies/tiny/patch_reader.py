"""Reader of the patches of an image for what the instruction names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from torchrl_vla.policies.encoders.image_features import ImageFeatures
from torchrl_vla.policies.tiny.image_encoder import _mean_position


class PatchReader(nn.Module):
    """Reduce patches of an image encoder to places where named features are strong.

    A linear layer per patch, then what :class:`KeypointImageEncoder` does with its own
    convolutions: FiLM by the instruction, and the mean position of each channel.

    Args:
        num_features: ``F``, size of a patch.
        text_dim: size of the instruction's encoding.
        width: channels that the patches are reduced to.
        n_keypoints: how many places to report.

    Examples:
        >>> import torch
        >>> reader = PatchReader(num_features=5, text_dim=8)
        >>> features = ImageFeatures(torch.zeros(2, 12, 5), torch.zeros(2, 5), (3, 4))
        >>> reader(features, torch.zeros(2, 8)).shape[-1] == reader.out_dim
        True
    """

    def __init__(
        self,
        num_features: int,
        text_dim: int,
        *,
        width: int = 48,
        n_keypoints: int = 16,
    ) -> None:
        super().__init__()
        self.out_dim = 2 * n_keypoints + width
        self.reduce = nn.Linear(num_features, width)
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(text_dim, 2 * width)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.heat = nn.Conv2d(width, n_keypoints, 1)

    def forward(self, features: ImageFeatures, text: Tensor) -> Tensor:
        """Encode ``N`` images given texts ``[N, E]`` as ``[N, out_dim]``."""
        x = gelu(self.norm(self.reduce(features.patches.to(self.reduce.weight.dtype))))
        x = x.unflatten(-2, features.grid).movedim(-1, -3)  # [N, width, rows, columns]
        scale, shift = self.film(text).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        x = gelu(x * (1 + scale) + shift)
        x = x + gelu(self.look(x))
        return torch.cat([_mean_position(self.heat(x)), x.mean((-2, -1))], -1)
