"""A policy whose head emits the mean and the spread of a chunk."""

from __future__ import annotations

import math
from abc import abstractmethod

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.gaussian.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.gaussian.inward_gradient_clamp import inward_clamp
from torchrl_vla.policies.stochastic_policy import StochasticVLAWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    CHUNK_SAMPLE_KEY,
    ELEMENT_LOG_PROBS_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    LOG_PROBS_KEY,
    STATE_KEY,
)


class GaussianVLAWrapper(StochasticVLAWrapper):
    """Emit a chunk of continuous actions, drawn around a mean.

    Abstract: a subclass implements :meth:`predict_mean_and_log_std`. What is drawn is
    written twice: as ``action_chunk``, which transforms denormalize and executors
    clip, and as ``chunk_sample``, which stays what was drawn and is what a
    log-probability is about. There is no squashing (tanh): a chunk in model space is
    normalized already, its mean was cloned without one, and an environment that clips
    an action changes what the robot does but not how likely the choice was.

    The spread is bounded by ``min_std`` and ``max_std``: near 0 a small step of the
    mean makes any ratio, and a cloned policy is lost far above the data's spread.

    **Reads** image, state and instruction. **Writes** ``action_chunk`` and
    ``chunk_sample`` float ``[*B, H, A]``, ``log_probs`` float ``[*B]``,
    ``element_log_probs`` float ``[*B, H, A]``.

    Keyword Args:
        action_dim: see :class:`VLAWrapperBase`, as for the other inputs.
        chunk_size: see there.
        min_std: lower bound of the standard deviation, in model space.
        max_std: upper bound.
        chunk_key: where the chunk is written.
        sample_key: where it is written as the policy's choice.
        log_probs_key: where its log-density is written.
        element_log_probs_key: where that of each number is written.
        image_key: see there.
        state_key: see there.
        instruction_key: see there.

    Raises:
        SchemaError: mean or log_std have an unexpected shape.
        ValueError: not ``0 < min_std <= max_std``.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        min_std: float = 0.01,
        max_std: float = 1.0,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        sample_key: NestedKey = CHUNK_SAMPLE_KEY,
        log_probs_key: NestedKey = LOG_PROBS_KEY,
        element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            sample_key=sample_key,
            chunk_key=chunk_key,
            log_probs_key=log_probs_key,
            element_log_probs_key=element_log_probs_key,
            image_key=image_key,
            state_key=state_key,
            instruction_key=instruction_key,
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
        """Return the mean ``[*B, H, A]`` and the logarithm of the spread.

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

    def decode(self, choice: Tensor) -> Tensor:
        """Return the chunk that was chosen: the choice itself."""
        return choice
