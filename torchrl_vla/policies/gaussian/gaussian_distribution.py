"""The distribution of a chunk of continuous actions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.rollout import normals
from torchrl_vla.schema import SchemaError

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class GaussianDistribution(ChunkDistribution):
    """One normal per number of a chunk; a chunk is one event.

    Log-density ``-((x - mean) / std)^2 / 2 - log std - log(2 pi) / 2`` for each of the
    ``H * A`` numbers.

    Args:
        mean: ``[*B, H, A]``; half precision is taken to float32 first.
        log_std: ``[A]``, ``[H, A]`` or ``[*B, H, A]``.

    Raises:
        SchemaError: the shapes do not fit, or a choice is not one of this batch.

    Examples:
        >>> dist = GaussianDistribution(torch.zeros(5, 2, 3), torch.zeros(3))
        >>> dist.sample().shape, dist.mode.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2, 3]))
        >>> dist.element_log_probs(dist.mode)[0, 0].exp()
        tensor([0.3989, 0.3989, 0.3989])
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        shapes = (mean.shape[-1:], mean.shape[-2:], mean.shape)
        if mean.ndim < 2 or log_std.shape not in shapes:
            raise SchemaError(
                "GaussianDistribution: expected log_std [A], [H, A] or [*B, H, A] for "
                f"a mean [*B, H, A], got {list(log_std.shape)} for "
                f"{list(mean.shape)}."
            )
        super().__init__(mean.shape[:-2], mean.shape[-2:])
        self._mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        self.log_std = log_std.to(self._mean.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean, ``[*B, H, A]``."""
        return self._mean

    @property
    def mode(self) -> Tensor:
        """The mean, ``[*B, H, A]``."""
        return self._mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw chunks, float ``[*sample_shape, *B, H, A]``."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            noise = torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)
            return self._mean + self.log_std.exp() * noise

    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw chunks, float ``[*B, H, A]``."""
        with torch.no_grad():
            noise = normals(noise_seeds.reshape(-1), self.event_shape.numel())
            noise = noise.view(self._extended_shape()).to(self._mean.dtype)
            return self._mean + self.log_std.exp() * noise

    def rsample_with_log_probs(self) -> tuple[Tensor, Tensor]:
        """Return a chunk with its gradient, and its log-density, ``[*B, H, A]``."""
        noise = torch.randn_like(self._mean)
        terms = -0.5 * noise.square() - self.log_std - _LOG_SQRT_2PI
        return self._mean + self.log_std.exp() * noise, terms

    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return the log-density ``[*B, H, A]`` of each number of a chunk."""
        self._check_sample(choice, self._mean.dtype)
        # Each operation by itself rounds a number alike wherever in the batch it lies.
        deviation = (choice - self._mean) * (-self.log_std).exp()
        return -0.5 * deviation.square() - self.log_std - _LOG_SQRT_2PI

    def element_entropy(self) -> Tensor:
        """Return the differential entropy ``[*B, H, A]`` of each number."""
        return (self.log_std + (0.5 + _LOG_SQRT_2PI)).expand_as(self._mean)

    def entropy(self) -> Tensor:
        """Return the differential entropy of a whole chunk, ``[*B]``."""
        return self._sum(self.element_entropy())
