"""Best of several chunks by a critic."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor

from torchrl_vla.policies.critics.chunk_critic import TinyChunkCritic
from torchrl_vla.policies.steering.steering_policy import SteeringPolicy, seeds_of
from torchrl_vla.policies.stochastic_policy import StochasticVLAWrapper
from torchrl_vla.rollout import hash_numbers
from torchrl_vla.schema import (
    CANDIDATE_CHUNKS_KEY,
    SchemaError,
    check_positive_int,
)


class BestOfN(SteeringPolicy):
    """Sample ``n`` chunks of a policy and execute the one that a critic values most.

    More computation per decision instead of more training: the policy stays as it is.
    The value of a chunk is the least of the critic's ensemble. The first candidate is
    the policy's mode, so with ``n = 1`` it acts as the policy without sampling; the
    others are sampled, with ``noise_seed`` where it is, otherwise alike in each call
    that does not sample.

    Note:
        The best of many estimates is overestimated. Compare it with the policy on the
        same episodes (``compare``) before you believe in it.

    **Reads** what the policy and the critic read; where it is, ``noise_seed``.
    **Writes** ``action_chunk`` float ``[*B, H, A]``.

    Args:
        policy: with a distribution that can be sampled from. Contained and frozen.
        critic: of chunks in the policy's space. Contained.
        n: candidates per decision.

    Raises:
        ValueError: ``n`` is not positive.
        SchemaError: the policy has no distribution, or the critic values other chunks.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import BackboneConfig, TinyFlowVLA
        >>> backbone = BackboneConfig(state_dim=3, cameras=(), hidden=8)
        >>> base = TinyFlowVLA(action_dim=2, chunk_size=4, backbone=backbone)
        >>> policy = BestOfN(base, TinyChunkCritic.from_policy(base), 8)
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.ones(3)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["action_chunk"].shape
        torch.Size([4, 2])

    Source: Q. Li, Z. Zhou, S. Levine, arXiv:2507.07969 (Q-chunking); J. Kwok et al.,
    arXiv:2506.17811 (RoboMonkey: sampling and verification at test time).
    """

    def __init__(
        self, policy: StochasticVLAWrapper, critic: TinyChunkCritic, n: int = 8
    ) -> None:
        check_positive_int("BestOfN", "n", n)
        if not hasattr(policy, "get_dist"):
            raise SchemaError(
                "BestOfN: expected a policy with get_dist(tensordict), whose chunks "
                f"differ, got {type(policy).__name__}. {policy.likelihood_advice}"
            )
        super().__init__(policy, tuple(critic.encoder.in_keys))
        sizes = (critic.chunk_size, critic.action_dim, critic.action_key)
        if sizes != (self.chunk_size, self.action_dim, self.chunk_key):
            raise SchemaError(
                "BestOfN: expected a critic of chunks "
                f"[{self.chunk_size}, {self.action_dim}] at {self.chunk_key!r}, got "
                f"one of [{sizes[0]}, {sizes[1]}] at {sizes[2]!r}."
            )
        self.n = n
        self.critic = critic

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {"policy": self.policy, "critic": self.critic, "n": self.n}

    @torch.no_grad()
    def store(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the features, and ``candidate_chunks`` float ``[*B, n, H, A]``.

        The policy is frozen: a target needs no new candidates in each update.
        """
        super().store(tensordict)
        with set_interaction_type(InteractionType.RANDOM):
            candidates = self.candidates(tensordict)
        return tensordict.set(CANDIDATE_CHUNKS_KEY, candidates.movedim(0, -3))

    @torch.no_grad()
    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the candidate ``[*B, H, A]`` of the highest value."""
        candidates = self.candidates(tensordict)
        features = self.critic.encode(tensordict)
        values = torch.stack(
            [self._value(features, candidate) for candidate in candidates]
        )
        best = values.argmax(0)[None, ..., None, None]
        return torch.take_along_dim(candidates, best, 0)[0]

    def candidates(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunks that are compared, ``[n, *B, H, A]``."""
        dist = self.policy.get_dist(tensordict)
        drawn = [dist.mode]
        seeds = seeds_of(tensordict, drawn[0])
        for number in range(1, self.n):
            drawn.append(
                dist.sample()
                if seeds is None
                else dist.sample_with_seeds(hash_numbers(seeds, number))
            )
        return torch.stack([self.policy.decode(sample) for sample in drawn])

    def _value(self, features: Tensor, chunk: Tensor) -> Tensor:
        values = self.critic.values(features, chunk)
        return values.min(0)[0].reshape(chunk.shape[:-2])
