"""Base class of policies that sample chunks and know their log-probability."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ClassVar

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution, sum_elements
from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ELEMENT_LOG_PROBS_KEY,
    LOG_PROBS_KEY,
    NOISE_SEED_KEY,
    MissingKeyError,
    ObservationKeys,
)


@dataclass(frozen=True)
class OutputKeys:
    """Name the entries that a sampling policy writes.

    Args:
        chunk: the chunk, ``[*B, H, A]``.
        sample: what was sampled; None = the default of the policy's head.
        log_probs: log-probability of the sample, ``[*B]``.
        element_log_probs: its terms, ``[*B, H, A]``.
    """

    chunk: NestedKey = ACTION_CHUNK_KEY
    sample: NestedKey | None = None
    log_probs: NestedKey = LOG_PROBS_KEY
    element_log_probs: NestedKey = ELEMENT_LOG_PROBS_KEY


class StochasticVLAWrapper(VLAWrapperBase):
    """Sample a chunk; write the sample and its log-probability.

    Abstract: what every head that reinforcement learning can train has in common. The
    *sample* is a latent (tokens, a chunk in model space, a path of denoising steps);
    the chunk is what it decodes to. It is random if the interaction type is ``RANDOM``
    (``set_interaction_type``, or the collector's ``exploration_type``), otherwise it is
    the distribution's mode.

    The contract, which ``torchrl_vla.testing.check_policy`` checks: ``get_dist``,
    ``log_prob`` and ``element_log_probs`` run the network with its current weights,
    and read nothing from the tensordict but the inputs and the sample; with the weights
    that made the sample they return what was written, bit for bit in float32, in
    whatever batch the sample lies. Then PPO's ratio is 1.

    **Reads**, where it is, ``noise_seed`` int64 ``[*B]``: a sample is then a function
    of its seed and its distribution, whatever the batch (``run_episodes`` writes it).
    Without it, samples come from PyTorch's global generator.

    **Writes** ``action_chunk`` float ``[*B, H, A]``, the sample at ``sample_key``,
    ``log_probs`` float ``[*B]`` and its terms ``element_log_probs`` float
    ``[*B, H, A]``. The sample is detached; the chunk of a deterministic continuous
    head keeps its gradient, so that ``BCLoss`` trains it.

    TorchRL's ``ClipPPOLoss`` takes such a policy after
    ``set_keys(action=policy.sample_key, sample_log_prob="log_probs")``, with the
    decisions of ``select_decisions`` or ``MultiAction``: what was not executed has
    ratio 1 and no gradient. Steps of a rollout raise.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let every head's distribution know what a batch says was executed."""
        super().__init_subclass__(**kwargs)
        if "get_dist" in vars(cls):
            cls.get_dist = _restricted(cls.get_dist)  # type: ignore

    #: Where the sample is written unless ``output_keys`` says otherwise.
    default_sample_key: ClassVar[NestedKey]

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, keys=keys)
        self.output_keys = output_keys
        sample = output_keys.sample
        self.sample_key = unravel_key(
            self.default_sample_key if sample is None else sample
        )
        self.chunk_key = unravel_key(output_keys.chunk)
        self.log_probs_key = unravel_key(output_keys.log_probs)
        self.element_log_probs_key = unravel_key(output_keys.element_log_probs)
        self.optional_in_keys = [NOISE_SEED_KEY]
        self.out_keys = [
            self.chunk_key,
            self.sample_key,
            self.log_probs_key,
            self.element_log_probs_key,
        ]

    @property
    def has_likelihood(self) -> bool:
        """True = the policy writes the log-probability of what it samples."""
        return True

    @abstractmethod
    def get_dist(self, tensordict: TensorDictBase) -> ChunkDistribution:
        """Return the distribution of samples under the current weights."""

    @abstractmethod
    def decode(self, sample: Tensor) -> Tensor:
        """Return the chunk ``[*B, H, A]`` that a sample stands for."""

    def element_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the terms ``[*B, H, A]`` of the log-probability of the sample there.

        Raises:
            MissingKeyError: the tensordict holds no sample.
            SchemaError: the sample is not one that this policy could have written.
        """
        sample = tensordict.get(self.sample_key, None)
        if sample is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected the policy's sample at "
                f"{self.sample_key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Call the policy to "
                "make one, or name its key in output_keys."
            )
        return self.get_dist(tensordict).element_log_probs(sample)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability ``[*B]`` of the sample in the tensordict."""
        return self._total(self.element_log_probs(tensordict), tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write a sample, its log-probability and the chunk."""
        dist = self.get_dist(tensordict)
        choice = self._choose(dist, tensordict.get(NOISE_SEED_KEY, None))
        chosen = choice.detach()
        elements = dist.element_log_probs(chosen)
        tensordict.set(self.sample_key, chosen)
        tensordict.set(self.element_log_probs_key, elements)
        tensordict.set(self.log_probs_key, self._total(elements, tensordict))
        return tensordict.set(self.chunk_key, self.decode(choice))

    @staticmethod
    def _total(elements: Tensor, tensordict: TensorDictBase) -> Tensor:
        return sum_elements(elements, elements.ndim - tensordict.ndim)

    def _choose(self, dist: ChunkDistribution, noise_seeds: Tensor | None) -> Tensor:
        if interaction_type() != InteractionType.RANDOM:
            return dist.mode
        if noise_seeds is None:
            return dist.sample()
        return dist.sample_with_seeds(noise_seeds)


def _restricted(
    get_dist: Callable[[StochasticVLAWrapper, TensorDictBase], ChunkDistribution],
) -> Callable[[StochasticVLAWrapper, TensorDictBase], ChunkDistribution]:
    @wraps(get_dist)
    def get_restricted(
        self: StochasticVLAWrapper, tensordict: TensorDictBase
    ) -> ChunkDistribution:
        dist = get_dist(self, tensordict)
        return dist.restrict(tensordict, self.element_log_probs_key)

    return get_restricted
