"""Parallel chunk head: all actions of a chunk from one pass over placeholders."""

from __future__ import annotations

import copy
import math

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.tiny.backbone import fill_rows
from torchrl_vla.policies.tiny.tiny_gaussian import StdConfig
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy


class ParallelReadout(nn.Module):
    """Read numbers for each action of a chunk off a trunk, all at once.

    One learned placeholder per action stands behind the prompt. The placeholders see
    the whole prompt and each other, so that one pass of the trunk makes the chunk. A
    state that the trunk does not read is added to each of them.

    Args:
        trunk: gives the sizes.
        chunk_size: ``H``.
        out_dim: numbers per action.
    """

    def __init__(self, trunk: VLATrunk, chunk_size: int, out_dim: int) -> None:
        super().__init__()
        size = trunk.hidden_size
        self.placeholders = nn.Parameter(0.02 * torch.randn(chunk_size, size))
        state_dim = trunk.config.state_dim if trunk.config.state == "head" else None
        self.state = None if state_dim is None else nn.Linear(state_dim, size)
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, size)
        self.out = nn.Linear(size, out_dim)

    def forward(self, trunk: VLATrunk, tensordict: TensorDictBase) -> Tensor:
        """Return ``[*B, H, out_dim]``, float32."""
        prefix = trunk.encode(tensordict)
        tokens = self.placeholders.expand(len(prefix), -1, -1)
        if self.state is not None:
            state = trunk.rows.state(tensordict).to(tokens.device)
            tokens = tokens + self.state(fill_rows(state))[: len(prefix), None]
        states, _ = trunk.extend(prefix, tokens, causal=False)
        rows = self.norm(fill_rows(states.flatten(0, 1)))
        numbers = self.out(torch.nn.functional.gelu(self.up(rows)))
        numbers = numbers[: states.shape[:2].numel()]
        batch = tensordict.batch_size
        return numbers.reshape(*batch, states.shape[1], numbers.shape[-1])


class VLMChunkPolicy(VLMPolicy, ContinuousVLAWrapper):
    """Predict a chunk by a vision-language trunk in one parallel pass.

    Cloned by L1 regression, as OpenVLA-OFT. ``to_stochastic`` makes it the mean of a
    :class:`VLMGaussianPolicy`. **Reads** images, instruction and, where the trunk's
    configuration has a ``state_dim``, the state. **Writes** ``action_chunk`` float32
    ``[*B, H, A]``.

    Args:
        trunk: is trained in place, as far as its weights require a gradient.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.

    Source: Kim et al., "Fine-Tuning Vision-Language-Action Models" (arXiv:2502.19645).
    """

    def __init__(self, trunk: VLATrunk, *, action_dim: int, chunk_size: int) -> None:
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, keys=trunk.keys)
        self.trunk = trunk
        self.readout = ParallelReadout(trunk, chunk_size, action_dim)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""
        return self.readout(self.trunk, tensordict)

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> VLMGaussianPolicy:
        """Return a Gaussian policy on this trunk, with a copy of the readout."""
        made = VLMGaussianPolicy(
            self.trunk,
            action_dim=self.action_dim,
            chunk_size=self.chunk_size,
            std=StdConfig(initial=initial_std),
        )
        made.readout = copy.deepcopy(self.readout)
        return made.to(self.trunk.device)


class VLMGaussianPolicy(VLMPolicy, GaussianVLAWrapper):
    """Sample a chunk around the one that a parallel pass predicts.

    :class:`VLMChunkPolicy` with one learned standard deviation per action dimension,
    for reinforcement learning. **Writes** what :class:`GaussianVLAWrapper` writes.

    Args:
        trunk: is trained in place, as far as its weights require a gradient.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        std: first value and bounds of the standard deviation.

    Raises:
        ValueError: the standard deviation is to be predicted.
    """

    without_gradient = {
        **VLMPolicy.without_gradient,
        **GaussianVLAWrapper.without_gradient,
    }

    def __init__(
        self,
        trunk: VLATrunk,
        *,
        action_dim: int,
        chunk_size: int,
        std: StdConfig = StdConfig(),
    ) -> None:
        if std.reads_inputs:
            raise ValueError(
                "VLMGaussianPolicy: expected a learned std per action dimension, got "
                "StdConfig(reads_inputs=True). Pass reads_inputs=False."
            )
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            min_std=std.min,
            max_std=std.max,
            keys=trunk.keys,
        )
        self.trunk, self.std = trunk, std
        self.readout = ParallelReadout(trunk, chunk_size, action_dim)
        log_std = torch.full((action_dim,), math.log(std.initial))
        self.log_std = nn.Parameter(log_std)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments without the trunk."""
        return {**super().config, "std": self.std}

    def predict_mean_and_log_std(
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        """Return the mean ``[*B, H, A]`` and the log of the standard deviation."""
        return self.readout(self.trunk, tensordict), self.log_std
