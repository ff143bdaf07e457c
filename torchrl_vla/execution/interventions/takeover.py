"""Rule that gives whole episodes to an expert (DAgger's mixture)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.rollout.random_numbers import GOLDEN, mix, uniforms
from torchrl_vla.schema import EPISODE_SEED_KEY, MissingKeyError


class EpisodeMixing:
    """Give whole episodes to the expert, each with the same probability.

    DAgger's mixture of expert and policy, drawn once an episode, so that a policy's
    chunks are not torn apart at every step. The draw is a function of ``seed`` and the
    episode's own seed: it is the same in any number of environments, and an episode
    that the expert has at one probability it has at every higher one. Lower the
    probability from iteration to iteration (Ross et al.: ``p ** i``); 0 is the policy
    alone.

    **Reads** ``episode_seed`` int64 ``[*B]``. **Returns** bool ``[*B, 1]``, True = the
    expert acts.

    Args:
        probability: of an expert's episode, in ``[0, 1]``.

    Keyword Args:
        seed: of the draws.

    Raises:
        ValueError: the probability is not in ``[0, 1]``.
        MissingKeyError: the tensordict has no episode seeds.

    Examples:
        >>> from tensordict import TensorDict
        >>> steps = TensorDict(episode_seed=torch.arange(1000), batch_size=[1000])
        >>> EpisodeMixing(0.3)(steps).sum()
        tensor(310)

    Source: S. Ross, G. Gordon and D. Bagnell, "A Reduction of Imitation Learning and
    Structured Prediction to No-Regret Online Learning" (AISTATS 2011).
    """

    def __init__(self, probability: float, *, seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(
                f"EpisodeMixing: expected a probability in [0, 1], got {probability}."
            )
        self.probability = probability
        self.seed = seed

    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Return the environments whose episode is the expert's."""
        episode = tensordict.get(EPISODE_SEED_KEY, None)
        if episode is None:
            raise MissingKeyError(
                f"EpisodeMixing: expected int64 [*B] at {EPISODE_SEED_KEY!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Use an environment "
                "that writes it, or a gate of your own. No action was sent."
            )
        # Scrambled, or the draw would be the first number of the initial state.
        ours = torch.tensor(self.seed, device=episode.device)
        draws = uniforms(mix(episode.reshape(-1) ^ mix(ours + GOLDEN)), 1)
        return (draws < self.probability).view(*episode.shape, 1)

    def __repr__(self) -> str:
        return f"EpisodeMixing({self.probability}, seed={self.seed})"
