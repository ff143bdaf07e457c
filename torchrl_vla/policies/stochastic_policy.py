"""A policy that chooses its chunk at random and knows how likely the choice was."""

from __future__ import annotations

from abc import abstractmethod

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution, sum_elements
from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ELEMENT_LOG_PROBS_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    LOG_PROBS_KEY,
    NOISE_SEED_KEY,
    STATE_KEY,
    MissingKeyError,
)


class StochasticVLAWrapper(VLAWrapperBase):
    """Draw a chunk and write what was chosen and its log-probability.

    Abstract: what every head that reinforcement learning can train has in common. The
    *choice* is what was drawn (tokens, a chunk in model space, a path of denoising
    steps); the chunk is what it decodes to. A choice is drawn if the interaction type
    is ``RANDOM`` (``set_interaction_type``, or the collector's ``exploration_type``),
    otherwise it is the distribution's mode.

    The contract, which ``torchrl_vla.testing.check_policy`` checks: ``get_dist``,
    ``log_prob`` and ``element_log_probs`` run the network with its current weights,
    and nothing that lies in the tensordict but the inputs and the choice is taken for
    an answer; with the weights that made the choice they return what was written, bit
    for bit in float32, in whatever batch a row lies. Then PPO's ratio is 1.

    **Reads**, where it is, ``noise_seed`` int64 ``[*B]``: a choice is then a function
    of its seed and its distribution, whatever the batch (``run_episodes`` writes it).
    Without it PyTorch's global generator draws.

    **Writes** ``action_chunk`` float ``[*B, H, A]``, the choice at ``sample_key``,
    ``log_probs`` float ``[*B]`` and its terms ``element_log_probs`` float
    ``[*B, H, A]``. The choice is detached; the chunk of a deterministic continuous
    head keeps its gradient, so that ``BCLoss`` trains it.

    TorchRL's ``ClipPPOLoss`` takes such a policy after
    ``set_keys(action=policy.sample_key, sample_log_prob="log_probs")``.

    Keyword Args:
        action_dim: see :class:`VLAWrapperBase`, as for the other inputs.
        chunk_size: see there.
        sample_key: where the choice is written.
        chunk_key: where the chunk is written.
        log_probs_key: where the choice's log-probability is written.
        element_log_probs_key: where its terms are written.
        image_key: see there.
        state_key: see there.
        instruction_key: see there.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        sample_key: NestedKey,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        log_probs_key: NestedKey = LOG_PROBS_KEY,
        element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            image_key=image_key,
            state_key=state_key,
            instruction_key=instruction_key,
        )
        self.sample_key = unravel_key(sample_key)
        self.chunk_key = unravel_key(chunk_key)
        self.log_probs_key = unravel_key(log_probs_key)
        self.element_log_probs_key = unravel_key(element_log_probs_key)
        self.optional_in_keys = [NOISE_SEED_KEY]
        self.out_keys = [
            self.chunk_key,
            self.sample_key,
            self.log_probs_key,
            self.element_log_probs_key,
        ]

    @abstractmethod
    def get_dist(self, tensordict: TensorDictBase) -> ChunkDistribution:
        """Return the distribution of choices under the current weights."""

    @abstractmethod
    def decode(self, choice: Tensor) -> Tensor:
        """Return the chunk ``[*B, H, A]`` that a choice stands for."""

    def element_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the terms ``[*B, H, A]`` of the log-probability of the choice there.

        Raises:
            MissingKeyError: the tensordict holds no choice.
            SchemaError: the choice is not one that this policy could have written.
        """
        choice = tensordict.get(self.sample_key, None)
        if choice is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected the policy's choice at "
                f"{self.sample_key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Call the policy to "
                "make one, or name its key when you build the policy."
            )
        return self.get_dist(tensordict).element_log_probs(choice)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the log-probability ``[*B]`` of the choice in the tensordict."""
        return sum_elements(self.element_log_probs(tensordict))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose; write the choice, its log-probability and the chunk."""
        dist = self.get_dist(tensordict)
        choice = self._choose(dist, tensordict.get(NOISE_SEED_KEY, None))
        chosen = choice.detach()
        elements = dist.element_log_probs(chosen)
        tensordict.set(self.sample_key, chosen)
        tensordict.set(self.element_log_probs_key, elements)
        tensordict.set(self.log_probs_key, sum_elements(elements))
        return tensordict.set(self.chunk_key, self.decode(choice))

    def _choose(self, dist: ChunkDistribution, noise_seeds: Tensor | None) -> Tensor:
        if interaction_type() != InteractionType.RANDOM:
            return dist.mode
        if noise_seeds is None:
            return dist.sample()
        return dist.sample_with_seeds(noise_seeds)
