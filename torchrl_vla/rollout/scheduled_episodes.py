"""Environment whose episodes are a function of a seed and an iteration."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.rollout.seeds import schedule_seeds, schedule_states
from torchrl_vla.schema import EPISODE_SEED_KEY, ExecutionError, check_positive_int


class ScheduledEpisodes(TransformedEnv):
    """Give every episode of a training environment its seed before it begins.

    Training that can be repeated, resumed and compared in groups needs to know its
    initial states. The ``n``-th episode of an env index is a function of ``seed``, the
    iteration, the group and ``n`` alone. Env indices of one group get the same seeds
    in the same order, so their ``n``-th episodes have the same initial state, which is
    what GRPO compares. The seeds have the purpose ``"training"`` of
    :func:`episode_seeds`: no episode of ``collect`` or ``evaluate`` has one of them.

    A ``TransformedEnv`` without transforms of its own; wrap it in another one.

    Args:
        env: batched ``[N]``, and takes ``reset(episode_seeds=...)``.

    Keyword Args:
        seed: of the whole schedule.
        group_size: env indices that share their episodes; divides ``N``.

    Raises:
        ValueError: ``group_size`` does not divide ``N``.
        ExecutionError: the environment takes no episode seeds.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = ScheduledEpisodes(TabletopEnv(4), seed=0, group_size=2)
        >>> seeds = env.reset()["episode_seed"]
        >>> (seeds[0] == seeds[1]).item(), (seeds[0] == seeds[2]).item()
        (True, False)
        >>> env.begin(7)
        >>> torch.equal(env.reset()["episode_seed"], seeds)
        False
        >>> env.begin(0)
        >>> torch.equal(env.reset()["episode_seed"], seeds)
        True
    """

    __signature__ = ConstructorSignature()

    def __init__(self, env: EnvBase, *, seed: int = 0, group_size: int = 1) -> None:
        super().__init__(env)
        check_positive_int("ScheduledEpisodes", "group_size", group_size)
        keys = env.observation_spec.keys(True, True)
        if EPISODE_SEED_KEY not in keys:
            raise ExecutionError(
                "ScheduledEpisodes: expected an environment with "
                f"{EPISODE_SEED_KEY!r} that takes reset(episode_seeds=...), got "
                f"{type(env).__name__} with {sorted(map(str, keys))}."
            )
        num_envs = env.batch_size.numel()
        if len(env.batch_size) != 1 or num_envs % group_size:
            raise ValueError(
                "ScheduledEpisodes: expected a batch [N] with N a multiple of "
                f"group_size={group_size}, got {list(env.batch_size)}."
            )
        self.schedule_seed = seed
        self.group_size = group_size
        self._groups = torch.arange(num_envs) // group_size
        self._started = torch.zeros(num_envs, dtype=torch.int64)
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Start the episodes of an iteration; the next reset must be of all envs."""
        self._states = schedule_states(self.schedule_seed, iteration, self._groups)
        self._started.zero_()

    def set_seed(
        self, seed: int | None = None, static_seed: bool = False
    ) -> int | None:
        """Begin another schedule, and seed the environment inside."""
        if seed is not None:
            self.schedule_seed = seed
        self.begin(0)
        return super().set_seed(seed, static_seed)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.base_env.batch_locked and not len(self.transform):
            return self.base_env._step(tensordict)  # no transform to apply
        return super()._step(tensordict)

    def _reset(
        self, tensordict: TensorDictBase | None = None, **kwargs: Any
    ) -> TensorDictBase:
        if "episode_seeds" not in kwargs:
            mask = None if tensordict is None else tensordict.get("_reset", None)
            kwargs["episode_seeds"] = self._next_seeds(mask)
        return super()._reset(tensordict, **kwargs)

    def _next_seeds(self, mask: Tensor | None) -> Tensor:
        seeds = schedule_seeds(self._states, self._started)
        started = 1 if mask is None else mask.reshape(-1).cpu().long()
        self._started = self._started + started
        return seeds.to(self.device or "cpu")
