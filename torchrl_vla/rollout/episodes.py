"""Loop that runs one episode per seed in any number of environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla.rollout.acting_border import (
    check_acting,
    check_device,
    check_initial_states,
    check_outcome,
)
from torchrl_vla.rollout.evaluation_mode import evaluation_mode
from torchrl_vla.rollout.interrupted_episodes import EpisodeFailure, EpisodeQueue
from torchrl_vla.rollout.random_numbers import noise_seeds
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IS_INIT_KEY,
    IS_WAITING_KEY,
    NOISE_SEED_KEY,
    ExecutionError,
    MissingKeyError,
    VLAError,
    advise_on_action,
    check_action_of,
    check_meeting,
)

#: Episodes that may fail one after the other before one is finished.
PATIENCE = 8


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
    failures: list[EpisodeFailure] | None = None,
    caller: str = "run_episodes",
) -> Iterator[EpisodeStep]:
    """Run one episode per seed, each exactly once, and yield every step.

    An environment takes the next seed when its episode ends, so short episodes are not
    over-counted. An environment without a seed left is stepped, but belongs to episode
    -1. Steps on which an executor makes an environment wait are no part of its
    episode: they belong to -1 and do not count.

    The policy is in evaluation mode while its episodes run, and each of its parts is
    back in its own mode after the last step; its buffers have their values back.

    With ``failures``, an episode that ends in an error is added there, and the others
    go on: those that it interrupted begin again, at frame 0 of the same index, so what
    was kept of them has to be dropped then. An error that names no environment is of
    the episode that raises it when it runs alone. What the policy raises before the
    first step of all, and the first error where :data:`PATIENCE` episodes failed and
    none was finished, are raised: they are faults of the set-up.

    **Writes**, before the policy is called, ``noise_seed`` int64 ``[*B]``, a hash of
    the episode's seed and the step: the noise of a policy that samples depends on
    these two alone. ``is_init`` where the environment does not write it.

    Args:
        env: batched with ``episode_seed`` in its observations, or unbatched.
        policy: writes ``action``.
        seeds: of the episodes.
        max_steps: raise when an episode takes longer; None trusts the environment.
        failures: receives the episodes that end in an error; None = it is raised.
        caller: opens the error messages.

    Raises:
        ArgumentTypeError: an environment or policy of another kind.
        ExecutionError: a batched environment without episode seeds, or an episode
            longer than ``max_steps``.
        MissingKeyError: the policy writes no action.
        SettingsError: the policy fails, and is on another device than the environment;
            or an evaluation has more episodes than the environment has initial states.
        SchemaError: an action is not finite or not what the environment's action spec
            says, success is something else than bool, or 0 and 1, or the reward is not
            finite.
        IncompatibleMetadataError: the policy was trained for another robot, rate,
            convention or image size than the environment declares; lists them.
    """
    check_acting(caller, env, policy)
    if not seeds:
        return
    check_meeting(caller, policy, env)
    check_initial_states(caller, env, seeds)
    episodes = _Episodes(env, seeds, caller)
    with evaluation_mode(policy):
        while episodes.queue:
            try:
                yield from _run_until_interrupted(episodes, policy, max_steps)
            except Exception as error:
                is_fatal = episodes.is_setup or (
                    isinstance(error, VLAError) and error.is_fatal
                )
                if failures is None or is_fatal:
                    raise
                failures += episodes.interrupt(error)
                if not episodes.has_finished and len(failures) >= PATIENCE:
                    raise failures[0].error from None


def _run_until_interrupted(
    episodes: _Episodes, policy: TensorDictModuleBase, max_steps: int | None
) -> Iterator[EpisodeStep]:
    env = episodes.env
    data = episodes.begin()
    while True:
        data.set(NOISE_SEED_KEY, episodes.noise_seeds())
        episodes.is_setup = not episodes.has_stepped
        data = _call(episodes, policy, data)
        episodes.is_setup, episodes.has_stepped = False, True
        for key, leaf in episodes.actions.items():
            check_action_of(episodes.caller, key, leaf, data)
        data = env.step(data)
        for outcome in (data, data.get("next")):
            check_outcome(episodes.caller, outcome)
        done = data.get(("next", "done")).reshape(episodes.count)
        moved = ~_waiting(data, episodes.count)
        episode = torch.where(moved, episodes.episode, -1)
        yield EpisodeStep(data, episode, episodes.frame.clone(), done)
        episodes.frame += moved
        _check_length(episodes, ~done.cpu(), max_steps)
        data = env.step_mdp(data)
        if bool(done.any()):
            if not episodes.finish(done):
                return
            data = episodes.reset(data.set("_reset", done.view(_flag_shape(env))))
        elif episodes.writes_init:
            data.set(IS_INIT_KEY, torch.zeros_like(data.get(IS_INIT_KEY)))


class _Episodes:
    """The episode of each environment."""

    def __init__(self, env: EnvBase, seeds: Sequence[int], caller: str) -> None:
        self.env, self.caller = env, caller
        self.count = env.batch_size.numel()
        keys = env.observation_spec.keys(True, True)
        self.seeded = EPISODE_SEED_KEY in keys
        self.actions = {key: env.full_action_spec[key] for key in env.action_keys}
        self.writes_init = IS_INIT_KEY not in keys
        self.has_stepped = self.has_finished = False
        self.is_setup = False  # True = an error now is one of the set-up
        if not self.seeded and env.batch_size:
            raise ExecutionError(
                f"{caller}: expected a batched environment to write "
                f"{EPISODE_SEED_KEY!r} and to take reset(episode_seeds=...), got "
                f"{type(env).__name__} with observations "
                f"{sorted(map(str, keys))}. Use an unbatched environment, whose "
                "set_seed is called before each episode, or add the seeds."
            )
        self._all_seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self.queue = EpisodeQueue(len(seeds))
        self.episode = torch.full((self.count,), -1)
        self.frame = torch.zeros(self.count, dtype=torch.int64)

    @property
    def seeds(self) -> Tensor:
        """The seed of each environment's episode.

        Nobody reads the steps of an environment without an episode: it repeats one
        that is running beside it, so that it fails only where that one does.
        """
        running = self.episode[self.episode >= 0]
        idle = running.min() if len(running) else torch.tensor(0)
        return self._all_seeds[torch.where(self.episode >= 0, self.episode, idle)]

    def noise_seeds(self) -> Tensor:
        """Return the seeds of the policy's noise on this step, ``[*B]``."""
        return self._like_env(noise_seeds(self.seeds, self.frame))

    def begin(self) -> TensorDictBase:
        """Begin the next episodes, in all environments."""
        self._assign(torch.arange(self.count), self.queue.begin(self.count))
        return self.reset(None)

    def finish(self, done: Tensor) -> bool:
        """Give the environments whose episode ended the next episodes, or none.

        Returns:
            True = an episode is running.
        """
        index = done.cpu().nonzero()[:, 0]
        self.has_finished |= bool((self.episode[index] >= 0).any())
        self._assign(index, self.queue.take(len(index)))
        return bool((self.episode >= 0).any())

    def interrupt(self, error: Exception) -> list[EpisodeFailure]:
        """Return the episodes that an error belongs to; the others run again."""
        envs = getattr(error, "env_indices", ())
        numbers = {int(self.episode[index]) for index in envs if index < self.count}
        running = sorted(self.episode[self.episode >= 0].tolist())
        found = self.queue.interrupt(running, sorted(numbers - {-1}))
        return [
            EpisodeFailure(index, int(self._all_seeds[index]), error) for index in found
        ]

    def _assign(self, index: Tensor, fresh: list[int]) -> None:
        missing = len(index) - len(fresh)
        self.episode[index] = torch.tensor([*fresh, *[-1] * missing])
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


def _check_length(episodes: _Episodes, running: Tensor, max_steps: int | None) -> None:
    frames = episodes.frame[running]
    if max_steps is not None and bool((frames >= max_steps).any()):
        episodes.is_setup = True
        raise ExecutionError(
            f"{episodes.caller}: expected episodes of at most max_steps={max_steps}, "
            "got a longer one. Give the environment a time limit (StepCounter with "
            "max_steps), or raise max_steps."
        )


def _call(
    episodes: _Episodes, policy: TensorDictModuleBase, data: TensorDictBase
) -> TensorDictBase:
    env, caller = episodes.env, episodes.caller
    try:
        data = policy(data)
    except VLAError:
        raise
    except Exception as error:
        try:
            check_device(caller, policy, env)
        except VLAError as elsewhere:
            raise elsewhere from error
        raise
    missing = [key for key in env.action_keys if data.get(key, None) is None]
    if missing:
        raise MissingKeyError(
            f"{caller}: expected {type(policy).__name__} to write {missing}, got "
            f"{sorted(map(str, policy.out_keys))}. {advise_on_action(missing, data)}"
        )
    return data
