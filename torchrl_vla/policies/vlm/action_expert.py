"""Action expert: a small transformer that attends to a trunk layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_vla.policies.tiny.backbone import fill_rows
from torchrl_vla.policies.vlm.prefix import LayerCache, Prefix
from torchrl_vla.policies.vlm.trunk import BLOCK, VLATrunk
from torchrl_vla.schema import check_positive_int


@dataclass(frozen=True)
class ExpertConfig:
    """Sizes of an action expert.

    Args:
        hidden: width; heads and their size are the trunk's, whose keys it reads.
        layer_interval: attends to every so manieth layer of the trunk, the last one
            included; 1 = to all of them, as pi0.

    Raises:
        ValueError: a size is not positive.
    """

    hidden: int = 256
    layer_interval: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_positive_int("ExpertConfig", name, value)


class ActionExpert(nn.Module):
    """Map a noisy chunk and its time to numbers like it, given an encoded observation.

    Each layer attends to the keys and values that the trunk's layer made, and to the
    state and all actions, without order among them. Nothing of the trunk is computed
    again. A row's result does not depend on the rows beside it.

    Args:
        trunk: gives the sizes of keys and values.
        config: its own.
        state_dim: ``S`` of a state that stands in front of the actions as a token;
            None = there is none.
        chunk_size: ``H``.
        action_dim: ``A``.

    Source: Black et al., "pi0" (arXiv:2410.24164); Shukor et al., "SmolVLA"
    (arXiv:2506.01844).
    """

    frequencies: Tensor
    rotary: Tensor

    def __init__(
        self,
        trunk: VLATrunk,
        config: ExpertConfig,
        *,
        state_dim: int | None,
        chunk_size: int,
        action_dim: int,
    ) -> None:
        super().__init__()
        shape = trunk.attention_shape
        width, last = config.hidden, trunk.num_layers
        self.chunk_size = chunk_size
        #: Layers of the trunk that are read.
        self.reads = [*range(last - 1, -1, -config.layer_interval)][::-1]
        frequencies = torch.logspace(0, 2, 16)  # radians over the whole of time
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.action = nn.Linear(action_dim, width)
        self.time = nn.Linear(2 * len(frequencies), width)
        self.mix = nn.Linear(width, width)
        self.state = None if state_dim is None else nn.Linear(state_dim, width)
        self.layers = nn.ModuleList(_ExpertLayer(width, *shape) for _ in self.reads)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, action_dim)
        theta, size = trunk.rotary_base, shape[-1]
        rotary = theta ** -(torch.arange(0, size, 2) / size)
        self.register_buffer("rotary", rotary, persistent=False)

    def forward(
        self, prefix: Prefix, x: Tensor, t: Tensor, state: Tensor | None
    ) -> Tensor:
        """Return ``[M, H, A]`` in the dtype of ``x``.

        Args:
            prefix: ``M`` rows.
            x: ``[M, H, A]``.
            t: of each action, from 0 to 1, ``[M, H]``.
            state: ``[M, S]``.
        """
        m = len(x)
        angle = fill_rows(t.flatten())[:, None] * self.frequencies
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        action = self.action(fill_rows(x.flatten(0, 1)).float())
        rows = self.mix(F.silu(action + time))[: m * self.chunk_size]
        tokens = rows.unflatten(0, (m, self.chunk_size))
        if self.state is not None:
            assert state is not None, "built for a state"
            first = self.state(fill_rows(state))[:m]
            tokens = torch.cat([first.unsqueeze(1), tokens], 1)
        count = tokens.shape[1]
        tokens = F.pad(tokens, (0, 0, 0, -count % BLOCK))
        seen = torch.arange(tokens.shape[1], device=x.device) < count
        seen = torch.cat([prefix.mask, seen.expand(m, -1)], 1)[:, None, None, :]
        angles = self._rotation(prefix.positions, tokens.shape[1])
        for layer, index in zip(self.layers, self.reads, strict=True):
            tokens = layer(tokens, prefix.cache[index], seen, angles)
        out = self.out(self.norm(tokens))[:, count - self.chunk_size : count]
        return out.to(x.dtype)

    def _rotation(self, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[M, 1, T, D]`` of the tokens behind the prefix."""
        places = positions[:, None] + torch.arange(count, device=positions.device)
        angle = places[:, None, :, None] * self.rotary
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


class _ExpertLayer(nn.Module):
    """Attention to a layer of the trunk and to the own tokens, then a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.shape = (heads, groups, size)
        self.before_attention = nn.RMSNorm(width, eps=1e-6)
        self.query = nn.Linear(width, heads * size, bias=False)
        self.key = nn.Linear(width, groups * size, bias=False)
        self.value = nn.Linear(width, groups * size, bias=False)
        self.merge = nn.Linear(heads * size, width, bias=False)
        self.before_mlp = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        tokens: Tensor,
        past: LayerCache,
        seen: Tensor,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the tokens ``[M, T, F]``.

        Args:
            tokens: ``[M, T, F]``.
            past: keys and values of the trunk, ``[M, G, L, D]``.
            seen: bool ``[M, 1, 1, L + T]``, True = there is a token.
            angles: cosine and sine ``[M, 1, T, D]``.
        """
        x, (heads, groups, size) = self.before_attention(tokens), self.shape
        query, key, value = (
            part(x).unflatten(-1, (-1, size)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        query, key = _rotate(query, *angles), _rotate(key, *angles)
        keys = torch.cat([past[0].to(key.dtype), key], 2)
        values = torch.cat([past[1].to(value.dtype), value], 2)
        # The heads of a group are more queries for the same keys, not copies of them.
        count, share = tokens.shape[1], heads // groups
        query = query.reshape(len(x), groups, share * count, size)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
        out = out.reshape(len(x), heads, count, size).transpose(1, 2).flatten(2)
        tokens = tokens + self.merge(out)
        x = self.before_mlp(tokens)
        return tokens + self.down(F.silu(self.gate(x)) * self.up(x))


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of numbers by their token's position, as the trunk's keys are."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine
