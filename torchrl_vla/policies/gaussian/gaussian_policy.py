"""Base class of policies with a Gaussian head."""

from __future__ import annotations

import math
from abc import abstractmethod

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.gaussian.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.gaussian.inward_gradient_clamp import inward_clamp
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.schema import CHUNK_SAMPLE_KEY, ObservationKeys


class GaussianVLAWrapper(StochasticVLAWrapper):
    """Sample a chunk of continuous actions from a Gaussian.

    Abstract: a subclass implements :meth:`predict_mean_and_log_std`. The sample is
    written twice: as ``action_chunk``, which transforms denormalize and executors
    clip, and unchanged as ``chunk_sample``, to which the log-probability refers. The
    sample is not squashed (tanh): a chunk in model space is normalized already, its
    mean was cloned without tanh, and an environment that clips an action changes what
    the robot does but not the sample's log-probability.

    The standard deviation is bounded by ``min_std`` and ``max_std``: near 0 a small
    step of the mean makes any ratio, and far above the data's standard deviation a
    cloned policy no longer succeeds.

    **Reads** image, state and instruction. **Writes** ``action_chunk`` and
    ``chunk_sample`` float ``[*B, H, A]``, ``log_probs`` float ``[*B]``,
    ``element_log_probs`` float ``[*B, H, A]``.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        min_std: lower bound of the standard deviation, in model space.
        max_std: upper bound.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes.

    Raises:
        SchemaError: mean or log_std have an unexpected shape.
        ValueError: not ``0 < min_std <= max_std``.
    """

    default_sample_key = CHUNK_SAMPLE_KEY
    without_gradient = {
        "log_std": "cloning moves the mean; reinforcement learning moves the deviation"
    }

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        min_std: float = 0.01,
        max_std: float = 1.0,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            keys=keys,
            output_keys=output_keys,
        )
        if not 0 < min_std <= max_std < math.inf:
            raise ValueError(
                f"{type(self).__name__}: expected 0 < min_std <= max_std, got "
                f"min_std={min_std!r} and max_std={max_std!r}."
            )
        self.min_std = min_std
        self.max_std = max_std

    @abstractmethod
    def predict_mean_and_log_std(
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        """Return the mean ``[*B, H, A]`` and the logarithm of the standard deviation.

        The latter is ``[A]`` or ``[H, A]`` where it does not depend on the input,
        otherwise ``[*B, H, A]``; it is clamped by the caller.
        """

    def get_dist(self, tensordict: TensorDictBase) -> GaussianDistribution:
        """Return the distribution of chunks under the current weights."""
        mean, log_std = self.predict_mean_and_log_std(tensordict)
        batch = tensordict.batch_size
        self._check_shape(mean, "predict_mean_and_log_std", batch)
        low, high = math.log(self.min_std), math.log(self.max_std)
        return GaussianDistribution(mean, inward_clamp(log_std, low, high))

    def decode(self, sample: Tensor) -> Tensor:
        """Return the chunk that was sampled: the sample itself."""
        return sample
