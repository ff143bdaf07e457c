"""Run episodes with given seeds in however many environments there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    EPISODE_SEED_KEY,
    IS_INIT_KEY,
    IS_WAITING_KEY,
    ExecutionError,
    MissingKeyError,
)

#: Distance between the seeds of two runs: that many episodes never share a seed.
_EPISODES_PER_SEED = 1_000_003


@dataclass
class EpisodeStep:
    """One step of every environment.

    Args:
        data: the step, ``[N]``, with its ``next``.
        episode: which episode each row belongs to, int64 ``[N]``; -1 = none, also
            while a row waits for the others (``is_waiting``).
        frame: 0-based step within the episode, int64 ``[N]``.
        done: True = this was the episode's last step, bool ``[N]``.
    """

    data: TensorDictBase
    episode: Tensor
    frame: Tensor
    done: Tensor


def episode_seeds(seed: int, count: int, first: int = 0) -> list[int]:
    """Return the seeds of episodes ``first .. first + count`` of a run.

    Episode ``i`` has seed ``(seed * 1_000_003 + i) % 2**31``: all different within a
    run, and no two runs of fewer than a million episodes share one.

    Examples:
        >>> episode_seeds(0, 2), episode_seeds(1, 2)
        ([0, 1], [1000003, 1000004])
    """
    start = seed * _EPISODES_PER_SEED + first
    return [(start + i) % (1 << 31) for i in range(count)]


def run_episodes(
    env: EnvBase,
    policy: TensorDictModuleBase,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
) -> Iterator[EpisodeStep]:
    """Run one episode per seed, each exactly once, and yield every step.

    Rows take the next seed as they finish, so short episodes are not over-counted,
    and rows without a seed left are stepped but belong to episode -1. Steps on which
    an executor makes a row wait are no part of its episode: they belong to -1 and do
    not count. ``is_init`` is written where the environment does not write it.

    Args:
        env: batched with ``episode_seed`` in its observations, or unbatched.
        policy: writes ``action``.
        seeds: of the episodes.
        max_steps: raise when an episode takes longer; None trusts the environment.

    Raises:
        ExecutionError: a batched environment without episode seeds, or an episode
            longer than ``max_steps``.
        MissingKeyError: the policy writes no action.
    """
    if not seeds:
        return
    rows = _Rows(env, seeds)
    data = rows.reset(None)
    while bool((rows.episode >= 0).any()):
        data = _act(env, policy, data)
        data = env.step(data)
        done = data.get(("next", "done")).reshape(rows.count)
        moved = ~_waiting(data, rows.count)
        episode = torch.where(moved, rows.episode, -1)
        yield EpisodeStep(data, episode, rows.frame.clone(), done)
        rows.frame += moved
        if max_steps is not None and bool((rows.frame[~done] >= max_steps).any()):
            raise ExecutionError(
                f"run_episodes: expected episodes of at most max_steps={max_steps}, "
                "got a longer one. Give the environment a time limit (StepCounter "
                "with max_steps), or raise max_steps."
            )
        data = env.step_mdp(data)
        if bool(done.any()):
            rows.finish(done)
            data = rows.reset(data.set("_reset", done.view(_flag_shape(env))))
        elif rows.writes_init:
            data.set(IS_INIT_KEY, torch.zeros_like(data.get(IS_INIT_KEY)))


class _Rows:
    """Which episode each row of the environment is in."""

    def __init__(self, env: EnvBase, seeds: Sequence[int]) -> None:
        self.env = env
        self.count = env.batch_size.numel()
        keys = env.observation_spec.keys(True, True)
        self.seeded = EPISODE_SEED_KEY in keys
        self.writes_init = IS_INIT_KEY not in keys
        if not self.seeded and env.batch_size:
            raise ExecutionError(
                "run_episodes: expected a batched environment to write "
                f"{EPISODE_SEED_KEY!r} and to take reset(episode_seeds=...), got "
                f"{type(env).__name__} with observations "
                f"{sorted(map(str, keys))}. Use an unbatched environment, whose "
                "set_seed is called before each episode, or add the seeds."
            )
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self.episode = torch.arange(self.count)
        self.episode[self.episode >= len(self.seeds)] = -1
        self.next_episode = self.count
        self.frame = torch.zeros(self.count, dtype=torch.int64)

    def finish(self, done: Tensor) -> None:
        """Give the finished rows the next episodes, or none."""
        index = done.cpu().nonzero()[:, 0]
        fresh = torch.arange(self.next_episode, self.next_episode + len(index))
        self.next_episode += len(index)
        self.episode[index] = torch.where(fresh < len(self.seeds), fresh, -1)
        self.frame[index] = 0

    def reset(self, data: TensorDictBase | None) -> TensorDictBase:
        """Reset the rows under ``_reset`` (all, without data) with their seeds."""
        mask = None if data is None else data.get("_reset").clone()
        # A row without an episode repeats the first; nobody looks at it.
        seeds = self.seeds[self.episode.clamp_min(0)]
        if self.seeded:
            shaped = seeds.view(self.env.batch_size).to(self.env.device or "cpu")
            data = self.env.reset(data, episode_seeds=shaped)
        else:
            self.env.set_seed(int(seeds[0]))
            data = self.env.reset(data)
        if self.writes_init:
            shape = _flag_shape(self.env)
            ones = torch.ones(shape, dtype=torch.bool, device=self.env.device)
            data.set(IS_INIT_KEY, ones if mask is None else mask)
        return data


def _flag_shape(env: EnvBase) -> tuple[int, ...]:
    return (*env.batch_size, 1)


def _waiting(data: TensorDictBase, count: int) -> Tensor:
    waiting = data.get(IS_WAITING_KEY, None)
    if waiting is None:
        return torch.zeros(count, dtype=torch.bool)
    return waiting.reshape(count).cpu()


def _act(
    env: EnvBase, policy: TensorDictModuleBase, data: TensorDictBase
) -> TensorDictBase:
    data = policy(data)
    missing = [key for key in env.action_keys if data.get(key, None) is None]
    if missing:
        hint = "Check its out_keys."
        if data.get(ACTION_CHUNK_KEY, None) is not None and ACTION_KEY in missing:
            hint = (
                f"It writes {ACTION_CHUNK_KEY!r}: wrap it in MultiStepActorWrapper, or "
                "append MultiAction to the environment."
            )
        raise MissingKeyError(
            f"run_episodes: expected {type(policy).__name__} to write {missing}, got "
            f"{sorted(map(str, policy.out_keys))}. {hint}"
        )
    return data
