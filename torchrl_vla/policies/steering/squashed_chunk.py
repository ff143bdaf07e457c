"""Distribution of chunks within a bounded distance of others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.rollout import normals

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_NEAREST = 1e-6  # of a stored number to the bound, where atanh ends


class SquashedChunkDistribution(ChunkDistribution):
    """Chunks ``centre + bound * tanh(u)`` with a Gaussian ``u``.

    Args:
        mean: of ``u``, ``[*B, H, A]``.
        log_std: of ``u``, ``[*B, H, A]``.
        bound: largest distance from the centre, positive, ``[A]``.
        centre: ``[*B, H, A]``; None = 0.

    Examples:
        >>> zero = torch.zeros(5, 2, 1)
        >>> dist = SquashedChunkDistribution(zero, zero, torch.tensor([0.1]))
        >>> bool(dist.sample().abs().max() < 0.1)
        True
        >>> chunk, log_probs = dist.rsample_with_log_probs()
        >>> torch.allclose(dist.element_log_probs(chunk), log_probs, atol=1e-4)
        True
    """

    def __init__(
        self,
        mean: Tensor,
        log_std: Tensor,
        bound: Tensor,
        centre: Tensor | None = None,
    ) -> None:
        super().__init__(mean.shape[:-2], mean.shape[-2:])
        self._mean, self._log_std, self._bound = mean, log_std, bound
        self._centre = torch.zeros_like(mean) if centre is None else centre

    @property
    def mode(self) -> Tensor:
        """The chunk at the mean of ``u``, ``[*B, H, A]``."""
        return self._chunk(self._mean)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw chunks, float ``[*sample_shape, *B, H, A]``."""
        with torch.no_grad():
            noise = torch.randn(
                self._extended_shape(torch.Size(sample_shape)),
                dtype=self._mean.dtype,
                device=self._mean.device,
            )
            return self._chunk(self._mean + self._log_std.exp() * noise)

    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw chunks, float ``[*B, H, A]``."""
        with torch.no_grad():
            noise = normals(noise_seeds.reshape(-1), self.event_shape.numel())
            noise = noise.view(self._extended_shape()).to(self._mean.dtype)
            return self._chunk(self._mean + self._log_std.exp() * noise)

    def rsample_with_log_probs(self) -> tuple[Tensor, Tensor]:
        """Return a chunk with its gradient, and its log-density, ``[*B, H, A]``."""
        noise = torch.randn_like(self._mean)
        u = self._mean + self._log_std.exp() * noise
        return self._chunk(u), self._density(noise, u)

    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return the log-density ``[*B, H, A]`` of each number of a chunk."""
        inside = ((choice - self._centre) / self._bound).clamp(
            _NEAREST - 1, 1 - _NEAREST
        )
        u = torch.atanh(inside)
        return self._density((u - self._mean) * (-self._log_std).exp(), u)

    def element_entropy(self) -> Tensor:
        """Raise: a squashed Gaussian has no closed form."""
        raise NotImplementedError(
            "SquashedChunkDistribution: expected an entropy with a closed form, got a "
            "squashed Gaussian, which has none. Estimate it from log-probabilities."
        )

    def _chunk(self, u: Tensor) -> Tensor:
        return self._centre + self._bound * torch.tanh(u)

    def _density(self, noise: Tensor, u: Tensor) -> Tensor:
        gaussian = -0.5 * noise.square() - self._log_std - _LOG_SQRT_2PI
        # log(1 - tanh(u)^2), without the cancellation
        squash = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        return gaussian - squash - self._bound.log()
