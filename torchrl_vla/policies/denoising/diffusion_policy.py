"""Base class of diffusion policies that predict the noise of a chunk."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.denoising.denoising_distribution import Condition, Guide
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.stochastic_policy import OutputKeys
from torchrl_vla.schema import ObservationKeys, check_positive_int


@dataclass(frozen=True)
class DiffusionConfig:
    """Steps, levels and noise of a diffusion policy.

    Args:
        num_steps: ``K``, denoising steps per decision.
        num_levels: noise levels of the training.
        eta: how noisy sampled steps are; 0 = as little as ``min_std`` allows.
        min_std: lower bound of a sampled step's standard deviation, in model space.
        data_bound: the largest number of a chunk, in model space. The default leaves
            room for actions normalized by mean and standard deviation.

    Raises:
        ValueError: ``num_steps`` exceeds ``num_levels``, ``eta`` is not in 0..1, or
            ``min_std`` is negative.
    """

    num_steps: int = 8
    num_levels: int = 100
    eta: float = 1.0
    min_std: float = 0.1
    data_bound: float = 5.0

    def __post_init__(self) -> None:
        check_positive_int("DiffusionConfig", "num_steps", self.num_steps)
        check_positive_int("DiffusionConfig", "num_levels", self.num_levels)
        if (
            self.num_steps > self.num_levels
            or not 0 <= self.eta <= 1
            or self.min_std < 0
        ):
            raise ValueError(
                "DiffusionConfig: expected num_steps <= num_levels, eta in 0..1 and "
                f"min_std >= 0, got num_steps={self.num_steps}, "
                f"num_levels={self.num_levels}, eta={self.eta}, "
                f"min_std={self.min_std}."
            )


class DiffusionVLAWrapper(DenoisingVLAWrapper):
    r"""Emit a chunk by ``K`` steps of a diffusion model that predicts the noise.

    Abstract: a subclass implements :meth:`encode` and :meth:`predict_noise`. Level 0
    is data, level ``num_levels`` all but noise:
    ``x_l = sqrt(abar_l) data + sqrt(1 - abar_l) noise`` with Nichol and Dhariwal's
    cosine schedule. Sampling visits ``K + 1`` levels, evenly spaced, by the DDIM step
    from ``abar`` to ``abar'``

    ``mean = sqrt(abar') data^ + sqrt(1 - abar' - sigma^2) noise^``,
    ``sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')``,

    where ``data^`` is the estimate, bounded (at the first levels it is a tiny signal
    divided by a tiny number), and ``noise^`` the one that fits it. ``eta = 1`` is
    DDPM's ancestral sampling. Acting deterministically takes steps with ``eta = 0``.

    Reinforcement learning takes ``std = max(sigma, min_std)`` for sampling and for the
    likelihood alike, also in the last step, whose ``sigma`` is 0: without a lower
    bound there is no exploration at the end, and a tiny change of the mean is a
    likelihood ratio of any size (DPPO). With ``min_std=0`` no path has a likelihood.

    **Reads** image, state and instruction. **Writes** what
    :class:`DenoisingVLAWrapper` writes.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        diffusion: steps, levels and noise.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes; ``sample`` is the path.

    Source: Ho et al. (2020); Nichol and Dhariwal (2021), equation 17; Song et al.,
    "DDIM" (2021), equations 12 and 16; Ren et al., "DPPO" (arXiv:2409.00588).

    Examples:
        >>> from tensordict import TensorDict
        >>> class ToThree(DiffusionVLAWrapper):  # knows that the data is 3 everywhere
        ...     def encode(self, tensordict):
        ...         return torch.zeros(tensordict.batch_size.numel(), 1)
        ...
        ...     def predict_noise(self, condition, x, level):
        ...         kept = self.signal[level][:, None, None]
        ...         return (x - kept.sqrt() * 3) / (1 - kept).sqrt()
        >>> steps = DiffusionConfig(num_steps=4)
        >>> policy = ToThree(action_dim=1, chunk_size=1, diffusion=steps)
        >>> policy(TensorDict(batch_size=[1]))["action_chunk"]
        tensor([[[3.]]])
    """

    cloning_loss = "diffusion"
    likelihood_advice = "Build it with DiffusionConfig(min_std=...) > 0."
    signal: Tensor

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        diffusion: DiffusionConfig = DiffusionConfig(),
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_steps=diffusion.num_steps,
            keys=keys,
            output_keys=output_keys,
        )
        self.diffusion = diffusion
        self.num_levels = diffusion.num_levels
        self.data_bound = float(diffusion.data_bound)
        self.eta, self.min_std = float(diffusion.eta), float(diffusion.min_std)
        signal = cosine_signal(self.num_levels)
        self.register_buffer("signal", signal, persistent=False)

    @abstractmethod
    def predict_noise(self, condition: Condition, x: Tensor, level: Tensor) -> Tensor:
        """Return the noise that is expected in ``x``, ``[M, H, A]``.

        Args:
            condition: rows of what :meth:`encode` returned.
            x: noisy chunks, ``[M, H, A]``.
            level: how noisy, int64 ``[M]`` in ``1..num_levels``.
        """

    def level_weight(self, level: Tensor) -> Tensor:
        """Return how much an error at each level counts, ``[M]``; 1 as in DDPM."""
        return torch.ones_like(self.signal[level])

    @property
    def has_likelihood(self) -> bool:
        """True = no step is without noise."""
        return self.min_std > 0

    def mean(self, condition: Condition, x: Tensor, step: Tensor) -> Tensor:
        """Return where the noisy step goes on average."""
        return self._step_mean(condition, x, step, self._sigma(step))

    def std(self, condition: Condition, step: Tensor) -> Tensor:
        """Return the noise of the step, no less than ``min_std``, ``[M, 1, 1]``."""
        return self._sigma(step).clamp_min(self.min_std)[:, None, None]

    def move(
        self, condition: Condition, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take a DDIM step with ``eta = 0``."""
        return self._step_mean(condition, x, step, torch.zeros_like(self._sigma(step)))

    def denoising_errors(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Return ``level_weight(l) (predict_noise(x_l, l) - noise)^2``, ``[*B, H, A]``.

        Reads the target at ``chunk_key``; see :class:`DenoisingVLAWrapper`.

        Args:
            tensordict: a batch with targets in model space.

        Keyword Args:
            generator: draws level and noise; None = PyTorch's global one.
            num_samples: see :class:`DenoisingVLAWrapper`.
        """
        condition, data = self._encode_and_target(tensordict, num_samples)
        dtype, device = torch.promote_types(data.dtype, torch.float32), data.device
        noise = torch.randn(data.shape, generator=generator, dtype=dtype, device=device)
        level = torch.randint(
            1, self.num_levels + 1, (len(data),), generator=generator, device=device
        )
        kept = self.signal[level][:, None, None]
        x = kept.sqrt() * data + (1 - kept).sqrt() * noise
        errors = (self.predict_noise(condition, x, level) - noise) ** 2
        errors = self.level_weight(level)[:, None, None] * errors
        errors = errors.unflatten(0, (num_samples, -1)).mean(0)
        return errors.reshape(*tensordict.batch_size, *data.shape[1:])

    def _level(self, step: Tensor) -> Tensor:
        """The level ``[M]`` at which each step begins; step ``K`` is at 0."""
        remaining = self.num_steps - step
        return (remaining * self.num_levels + self.num_steps // 2) // self.num_steps

    def _sigma(self, step: Tensor) -> Tensor:
        before, after = (
            self.signal[self._level(step)],
            self.signal[self._level(step + 1)],
        )
        variance = (1 - after) / (1 - before) * (1 - before / after)
        return self.eta * variance.clamp_min(0).sqrt()

    def _step_mean(
        self, condition: Condition, x: Tensor, step: Tensor, sigma: Tensor
    ) -> Tensor:
        level = self._level(step)
        noise = self.predict_noise(condition, x, level)
        before = self.signal[level][:, None, None]
        after = self.signal[self._level(step + 1)][:, None, None]
        sigma = sigma[:, None, None]
        data = (x - (1 - before).sqrt() * noise) / before.sqrt()
        data = data.clamp(-self.data_bound, self.data_bound)
        noise = (x - before.sqrt() * data) / (1 - before).sqrt()
        rest = (1 - after - sigma * sigma).clamp_min(0).sqrt()
        return after.sqrt() * data + rest * noise


def cosine_signal(num_levels: int, *, offset: float = 0.008) -> Tensor:
    """Return ``abar`` of levels ``0..num_levels``, the share of the data's variance.

    ``abar_l = f(l) / f(0)``, ``f(l) = cos^2((l / L + offset) / (1 + offset) pi / 2)``,
    with each level's noise variance ``1 - abar_l / abar_{l-1}`` at most 0.999, so that
    the last level keeps a trace of the data.

    Source: Nichol and Dhariwal (2021), equation 17.

    Examples:
        >>> cosine_signal(2)
        tensor([1.0000e+00, 4.9384e-01, 4.9384e-04])
    """
    time = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64)
    f = ((time + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    kept = (f[1:] / f[:-1]).clamp_min(1 - 0.999)
    return torch.cat([kept.new_ones(1), kept.cumprod(0)]).float()
