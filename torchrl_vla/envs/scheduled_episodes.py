"""Say which episodes an environment plays, as a function of a seed."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.schema import EPISODE_SEED_KEY, ExecutionError, check_positive_int
from torchrl_vla.schema.randomness import GOLDEN, mix


class ScheduledEpisodes(TransformedEnv):
    """Give every episode of an environment its seed before it begins.

    Training that can be repeated, resumed and compared in groups needs to know which
    initial states it will see. The ``n``-th episode of a row is a function of
    ``seed``, the iteration, the row's group and ``n`` alone, not of how many random
    numbers were drawn before. Rows of one group get the same seeds in the same order,
    so their ``n``-th episodes begin alike: what GRPO compares. The surprise: the
    seeds lie in ``2**30 .. 2**31 - 1``, where ``episode_seeds`` of ``collect`` and
    ``evaluate`` does not reach (for run seeds below 1073), so a policy is never
    judged on the initial states that it was trained on.

    A ``TransformedEnv`` without transforms of its own; wrap it in another one.

    Args:
        env: batched ``[N]``, and takes ``reset(episode_seeds=...)``.

    Keyword Args:
        seed: of the whole schedule.
        group_size: rows that share their episodes; divides ``N``.

    Raises:
        ValueError: ``group_size`` does not divide the rows.
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

    def __init__(self, env: EnvBase, *, seed: int = 0, group_size: int = 1) -> None:
        super().__init__(env)
        check_positive_int("ScheduledEpisodes", "group_size", group_size)
        if EPISODE_SEED_KEY not in env.observation_spec.keys(True, True):
            raise ExecutionError(
                "ScheduledEpisodes: expected an environment with "
                f"{EPISODE_SEED_KEY!r} that takes reset(episode_seeds=...), got "
                f"{type(env).__name__} with "
                f"{sorted(map(str, env.observation_spec.keys(True, True)))}."
            )
        rows = env.batch_size.numel()
        if len(env.batch_size) != 1 or rows % group_size:
            raise ValueError(
                "ScheduledEpisodes: expected a batch [N] with N a multiple of "
                f"group_size={group_size}, got {list(env.batch_size)}."
            )
        self.schedule_seed = seed
        self.group_size = group_size
        self._group = torch.arange(rows) // group_size
        self._played = torch.zeros(rows, dtype=torch.int64)
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Start the episodes of an iteration; the next reset must be of all rows."""
        self._state = _hash(_hash(self.schedule_seed, iteration), self._group)
        self._played.zero_()

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
            return self.base_env._step(tensordict)  # nothing to do on the way
        return super()._step(tensordict)

    def _reset(
        self, tensordict: TensorDictBase | None = None, **kwargs: Any
    ) -> TensorDictBase:
        if "episode_seeds" not in kwargs:
            mask = None if tensordict is None else tensordict.get("_reset", None)
            kwargs["episode_seeds"] = self._next_seeds(mask)
        return super()._reset(tensordict, **kwargs)

    def _next_seeds(self, mask: Tensor | None) -> Tensor:
        # The upper half of the 31 bits that an episode seed has.
        seeds = _hash(self._state, self._played) & ((1 << 30) - 1) | (1 << 30)
        rows = 1 if mask is None else mask.reshape(-1).cpu().long()
        self._played = self._played + rows
        return seeds.to(self.device or "cpu")


def _hash(state: Tensor | int, value: Tensor | int) -> Tensor:
    """Mix a number into a hash; all 64 bits of both matter."""
    return mix(torch.as_tensor(state) * GOLDEN + torch.as_tensor(value))
