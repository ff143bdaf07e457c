"""Seeds of episodes, disjoint by purpose."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from torchrl_vla._internal.option_names import Purpose as Purpose
from torchrl_vla.rollout.random_numbers import hash_numbers

#: Distance between the seeds of two runs: that many episodes never share a seed.
_EPISODES_PER_RUN = 1_000_003
_EVALUATION, _TRAINING, _END = 1 << 29, 1 << 30, 1 << 31


def episode_seeds(run: int, count: int, purpose: Purpose, first: int = 0) -> list[int]:
    """Return the seeds of episodes ``first .. first + count`` of a run.

    A seed has 31 bits, of which the highest two are the purpose: ``00``
    demonstrations, ``01`` evaluation, ``1x`` training. So no policy is evaluated on
    an initial state that it was cloned from or trained on, unless the caller names
    that purpose.

    Seed ``i`` of demonstrations and of evaluations is ``(run * 1_000_003 + i) %
    2**29`` beside the bits of the purpose: all seeds of a run are different, and runs
    below 536 of fewer than a million episodes share none. The seeds of training are
    those of :class:`ScheduledEpisodes`: episode ``i`` is the first one of group ``i``
    in iteration 1 of the schedule with seed ``run``.

    Args:
        run: number of the run; the ``seed`` of ``collect`` and ``evaluate``.
        count: how many episodes.
        purpose: what the episodes are for.
        first: index of the first one.

    Raises:
        ValueError: there is no such purpose.

    Examples:
        >>> episode_seeds(0, 2, "demonstrations"), episode_seeds(1, 1, "demonstrations")
        ([0, 1], [1000003])
        >>> episode_seeds(0, 2, "evaluation")
        [536870912, 536870913]
    """
    check_purpose("episode_seeds", purpose)
    if purpose == "training":
        groups = torch.arange(first, first + count)
        return schedule_seeds(schedule_states(run, 1, groups), 0).tolist()
    offset = _EVALUATION if purpose == "evaluation" else 0
    start = run * _EPISODES_PER_RUN + first
    return [offset + (start + i) % _EVALUATION for i in range(count)]


def seed_purpose(seed: int) -> tuple[Purpose, int]:
    """Return what an episode's seed is for, and the episode's index in its run.

    The way back from :func:`episode_seeds`, for environments that have a list of
    initial states to evaluate from. The seeds of training have no order: their index is
    a random number.

    Examples:
        >>> seed_purpose(episode_seeds(3, 1, "evaluation", first=7)[0])
        ('evaluation', 7)
        >>> seed_purpose(12)
        ('demonstrations', 12)
    """
    if seed >= _TRAINING:
        return "training", seed - _TRAINING
    index = (seed % _EVALUATION) % _EPISODES_PER_RUN
    return ("evaluation" if seed >= _EVALUATION else "demonstrations"), index


def schedule_states(run: int, iteration: int, groups: Tensor) -> Tensor:
    """Return the state of each group in an iteration of training, int64 like groups."""
    return hash_numbers(run, iteration, groups)


def schedule_seeds(states: Tensor, episode: Tensor | int) -> Tensor:
    """Return the seed of the ``episode``-th episode after each state."""
    return hash_numbers(states, episode) & (_TRAINING - 1) | _TRAINING


def iteration_seed(run: int, iteration: int) -> int:
    """Return the seed of PyTorch's generator in an iteration of training.

    Examples:
        >>> iteration_seed(2, 5)
        2000011
    """
    return (run * _EPISODES_PER_RUN + iteration) % _END


def check_purpose(caller: str, purpose: str) -> None:
    """Raise ``ValueError`` unless there is such a purpose."""
    if purpose not in get_args(Purpose):
        raise ValueError(
            f"{caller}: expected purpose to be one of {get_args(Purpose)}, got "
            f"{purpose!r}."
        )
