"""Loop that runs one episode per seed in any number of environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla.rollout.evaluation_mode import evaluation_mode
from torchrl_vla.rollout.random_numbers import noise_seeds
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    EPISODE_SEED_KEY,
    IS_INIT_KEY,
    IS_WAITING_KEY,
    NOISE_SEED_KEY,
    ExecutionError,
    MissingKeyError,
    check_meeting,
)


@dataclass
class EpisodeStep:
    """One step of every environment.

    Args:
        data: the step, ``[N]``, with its ``next``.
        episode: index of each environment's episode, int64 ``[N]``; -1 = none, also
            while an environment waits for the others (``is_waiting``).
        frame: 0-based step within the episode, int64 ``[N]``.
        done: True = this was the episode's last step, bool ``[N]``.
    """

    data: TensorDictBase
    episode: Tensor
    frame: Tensor
    done: Tensor


def run_episodes(
    env: EnvBase,
    policy: TensorDictModuleBase,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
) -> Iterator[EpisodeStep]:
    """Run one episode per seed, each exactly once, and yield every step.

    An environment takes the next seed when its episode ends, so short episodes are not
    over-counted. An environment without a seed left is stepped, but belongs to episode
    -1. Steps on which an executor makes an environment wait are no part of its
    episode: they belong to -1 and do not count.

    The policy is in evaluation mode while its episodes run, and each of its parts is
    back in its own mode after the last step.

    **Writes**, before the policy is called, ``noise_seed`` int64 ``[*B]``, a hash of
    the episode's seed and the step: the noise of a policy that samples depends on
    these two alone. ``is_init`` where the environment does not write it.

    Args:
        env: batched with ``episode_seed`` in its observations, or unbatched.
        policy: writes ``action``.
        seeds: of the episodes.
        max_steps: raise when an episode takes longer; None trusts the environment.

    Raises:
        ExecutionError: a batched environment without episode seeds, or an episode
            longer than ``max_steps``.
        MissingKeyError: the policy writes no action.
        IncompatibleMetadataError: the policy was trained for another robot, rate,
            convention or image size than the environment declares; lists them.
    """
    if not seeds:
        return
    check_meeting("run_episodes", policy, env)
    episodes = _Episodes(env, seeds)
    with evaluation_mode(policy):
        data = episodes.reset(None)
        while bool((episodes.episode >= 0).any()):
            data.set(NOISE_SEED_KEY, episodes.noise_seeds())
            data = _call(env, policy, data)
            data = env.step(data)
            done = data.get(("next", "done")).reshape(episodes.count)
            moved = ~_waiting(data, episodes.count)
            episode = torch.where(moved, episodes.episode, -1)
            yield EpisodeStep(data, episode, episodes.frame.clone(), done)
            episodes.frame += moved
            _check_length(episodes.frame[~done.cpu()], max_steps)
            data = env.step_mdp(data)
            if bool(done.any()):
                episodes.finish(done)
                data = episodes.reset(data.set("_reset", done.view(_flag_shape(env))))
            elif episodes.writes_init:
                data.set(IS_INIT_KEY, torch.zeros_like(data.get(IS_INIT_KEY)))


class _Episodes:
    """The episode of each environment."""

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
        self._all_seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self.episode = torch.arange(self.count)
        self.episode[self.episode >= len(self._all_seeds)] = -1
        self.next_episode = self.count
        self.frame = torch.zeros(self.count, dtype=torch.int64)

    @property
    def seeds(self) -> Tensor:
        """The seed of each environment's episode, that of the first where it has none.

        Nobody reads the steps of an environment without an episode.
        """
        return self._all_seeds[self.episode.clamp_min(0)]

    def noise_seeds(self) -> Tensor:
        """Return the seeds of the policy's noise on this step, ``[*B]``."""
        return self._like_env(noise_seeds(self.seeds, self.frame))

    def finish(self, done: Tensor) -> None:
        """Give the environments whose episode ended the next episodes, or none."""
        index = done.cpu().nonzero()[:, 0]
        fresh = torch.arange(self.next_episode, self.next_episode + len(index))
        self.next_episode += len(index)
        self.episode[index] = torch.where(fresh < len(self._all_seeds), fresh, -1)
        self.frame[index] = 0

    def reset(self, data: TensorDictBase | None) -> TensorDictBase:
        """Reset the environments under ``_reset`` (all, without data)."""
        mask = None if data is None else data.get("_reset").clone()
        if self.seeded:
            data = self.env.reset(data, episode_seeds=self._like_env(self.seeds))
        else:
            self.env.set_seed(int(self.seeds[0]))
            data = self.env.reset(data)
        if self.writes_init:
            shape = _flag_shape(self.env)
            ones = torch.ones(shape, dtype=torch.bool, device=self.env.device)
            data.set(IS_INIT_KEY, ones if mask is None else mask)
        return data

    def _like_env(self, values: Tensor) -> Tensor:
        return values.view(self.env.batch_size).to(self.env.device or "cpu")


def _flag_shape(env: EnvBase) -> tuple[int, ...]:
    return (*env.batch_size, 1)


def _waiting(data: TensorDictBase, count: int) -> Tensor:
    waiting = data.get(IS_WAITING_KEY, None)
    if waiting is None:
        return torch.zeros(count, dtype=torch.bool)
    return waiting.reshape(count).cpu()


def _check_length(frames: Tensor, max_steps: int | None) -> None:
    if max_steps is not None and bool((frames >= max_steps).any()):
        raise ExecutionError(
            f"run_episodes: expected episodes of at most max_steps={max_steps}, got a "
            "longer one. Give the environment a time limit (StepCounter with "
            "max_steps), or raise max_steps."
        )


def _call(
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
