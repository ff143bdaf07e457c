"""The small network that is run at every denoising step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_vla.policies.tiny.backbone import fill_rows


class TinyDenoiser(nn.Module):
    """Map a noisy chunk, its time and the encoded observation to numbers like it.

    The three are added up and go through residual blocks. A row's result does not
    depend on the rows beside it, not in the last bit.

    Args:
        chunk_size: ``H``.
        action_dim: ``A``.
        condition_dim: ``F``, size of the encoded observation.

    Keyword Args:
        hidden: width of the blocks.
        depth: number of blocks.

    Examples:
        >>> net = TinyDenoiser(4, 2, condition_dim=8, hidden=16, depth=1)
        >>> net(torch.zeros(3, 8), torch.zeros(3, 4, 2), torch.zeros(3)).shape
        torch.Size([3, 4, 2])
    """

    frequencies: Tensor

    def __init__(
        self,
        chunk_size: int,
        action_dim: int,
        condition_dim: int,
        *,
        hidden: int,
        depth: int,
    ) -> None:
        super().__init__()
        self._size = (chunk_size, action_dim)
        size = chunk_size * action_dim
        frequencies = torch.logspace(0, 2, 16)  # radians over the whole of time
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.chunk = nn.Linear(size, hidden)
        self.time = nn.Linear(2 * len(frequencies), hidden)
        self.condition = nn.Linear(condition_dim, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, size)

    def forward(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return ``[M, H, A]`` in the dtype of ``x``.

        Args:
            condition: ``[M, F]``.
            x: ``[M, H, A]``.
            t: ``[M]``, from 0 to 1.
        """
        n, dtype = len(x), self.out.weight.dtype
        angle = fill_rows(t)[:, None] * self.frequencies
        time = torch.cat([angle.sin(), angle.cos()], -1).to(dtype)
        hidden = self.chunk(fill_rows(x.flatten(1)).to(dtype)) + self.time(time)
        hidden = hidden + self.condition(fill_rows(condition))
        for block in self.blocks:
            hidden = block(hidden)
        out = self.out(self.norm(hidden)).to(x.dtype)
        return out[:n].unflatten(-1, self._size)


class _Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))
