"""Group-relative advantages without a critic (GRPO, RLOO)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.objectives.episode_outcomes import EpisodeOutcomes
from torchrl_vla.schema import EPISODE_SEED_KEY, MissingKeyError, SchemaError


class GroupAdvantage(ABC):
    """Give each decision its episode's return, relative to its group's.

    Abstract: :class:`GRPOAdvantage` and :class:`RLOOAdvantage` implement
    :meth:`relative`.
    A group is the episodes with one seed, that is, one initial state and instruction.
    Episodes that the batch cuts off have no return yet and are dropped, as are groups
    of one episode, and groups whose success rate is not strictly inside ``keep``
    (dynamic sampling: where all succeed or all fail, there is nothing to learn). An
    episode succeeds when its task is achieved at any of its steps. TorchRL's
    ``MCAdvantage`` does the same in Python, one trajectory at a time, on its way into a
    buffer.

    **Reads** decisions ``[*B, T]``: ``episode_seed`` int64 ``[*B, T]``,
    ``("next", "reward")`` float, ``("next", "done")`` bool and, if it is there,
    ``("next", "success")`` bool ``[*B, T, 1]``.
    **Writes** a new tensordict ``[N]`` with the decisions that are kept, in order,
    and their ``advantage`` float ``[N, 1]``; ``group_return`` float ``[N, 1]``, their
    group's mean.

    Keyword Args:
        keep: bounds of a kept group's success rate, exclusive; of its mean return,
            where there is no success. None keeps every group.
        group_key: integer that the episodes of a group share.

    Raises:
        ValueError: the bounds are not increasing.
        MissingKeyError: a key is missing.
        SchemaError: the batch has no time dimension, or the key is not an integer.

    Source: Z. Shao et al., arXiv:2402.03300 (GRPO); Q. Yu et al., arXiv:2503.14476
    (dynamic sampling).
    """

    def __init__(
        self,
        *,
        keep: tuple[float, float] | None = None,
        group_key: NestedKey = EPISODE_SEED_KEY,
    ) -> None:
        if keep is not None and not keep[0] < keep[1]:
            raise ValueError(
                f"{type(self).__name__}: expected keep=(low, high) with low < high, "
                f"got {keep}."
            )
        self.keep = keep
        self.group_key = group_key

    @abstractmethod
    def relative(self, returns: Tensor, group: Tensor, n_groups: int) -> Tensor:
        """Return each episode's advantage ``[E]``.

        Args:
            returns: of the episodes, ``[E]``; every group has at least two.
            group: of each episode, int64 ``[E]`` in ``0 .. n_groups - 1``.
            n_groups: how many groups.
        """

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the decisions of comparable episodes, with their advantage."""
        if len(tensordict.batch_size) < 2:
            raise SchemaError(
                f"{type(self).__name__}: expected decisions [*B, T] with time last, "
                f"got batch size {list(tensordict.batch_size)}."
            )
        horizon = tensordict.batch_size[-1]
        self._read(tensordict, ("next", "done"))
        reward = self._read(tensordict, ("next", "reward")).reshape(-1, horizon)
        seeds = self._read(tensordict, self.group_key).reshape(-1, horizon)
        if seeds.dtype.is_floating_point:
            raise SchemaError(
                f"{type(self).__name__}: expected integers at {self.group_key!r}, got "
                f"{seeds.dtype}."
            )
        outcomes = EpisodeOutcomes.from_rollout(tensordict)
        flat = outcomes.number.flatten()
        returns = outcomes.sum(reward)
        complete = outcomes.is_complete
        seed_of = seeds.new_zeros(len(returns)).scatter_(0, flat, seeds.flatten())
        judged = returns
        if outcomes.success is not None:
            judged = outcomes.success.to(returns.dtype)

        kept = complete.nonzero().squeeze(-1)
        _, group = seed_of[kept].unique(return_inverse=True)
        kept, group, n_groups = self._comparable(kept, group, judged)
        advantage = torch.zeros_like(returns)
        mean = torch.zeros_like(returns)
        is_comparable = torch.zeros_like(complete)
        if len(kept):
            advantage[kept] = self.relative(returns[kept], group, n_groups)
            mean[kept] = _group_mean(returns[kept], group, n_groups)[group]
            is_comparable[kept] = True
        index = is_comparable[flat].nonzero().squeeze(-1)
        out = tensordict.reshape(-1)[index]
        out.set("advantage", advantage[flat[index]].unsqueeze(-1))
        return out.set("group_return", mean[flat[index]].unsqueeze(-1))

    def _comparable(
        self, kept: Tensor, group: Tensor, judged: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Drop episodes whose group has one member or a mean outcome outside keep."""
        n_groups = int(group.max()) + 1 if len(group) else 0
        good = torch.bincount(group, minlength=n_groups) >= 2
        if self.keep is not None and n_groups:
            mean = _group_mean(judged[kept], group, n_groups)
            good &= (mean > self.keep[0]) & (mean < self.keep[1])
        chosen = good[group] if n_groups else torch.zeros_like(group, dtype=torch.bool)
        kept = kept[chosen]
        groups, group = group[chosen].unique(return_inverse=True)
        return kept, group, len(groups)

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected {key!r} of decisions, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        return value


class GRPOAdvantage(GroupAdvantage):
    """Subtract the group's mean return, and divide by its standard deviation.

    Keyword Args:
        keep: as of :class:`GroupAdvantage`; so is ``group_key``.
        group_key: integer that the episodes of a group share.
        divide_by_std: False = only subtract the mean, which does not amplify groups of
            nearly equal returns (Z. Liu et al., arXiv:2503.20783).

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict(
        ...     {
        ...         "episode_seed": torch.tensor([[7], [7]]),
        ...         "next": {
        ...             "reward": torch.tensor([[[0.0]], [[1.0]]]),
        ...             "done": torch.ones(2, 1, 1, dtype=torch.bool),
        ...         },
        ...     },
        ...     batch_size=[2, 1],
        ... )
        >>> GRPOAdvantage()(data)["advantage"].flatten()
        tensor([-0.7071,  0.7071])
    """

    def __init__(
        self,
        *,
        keep: tuple[float, float] | None = None,
        group_key: NestedKey = EPISODE_SEED_KEY,
        divide_by_std: bool = True,
    ) -> None:
        super().__init__(keep=keep, group_key=group_key)
        self.divide_by_std = divide_by_std

    def relative(self, returns: Tensor, group: Tensor, n_groups: int) -> Tensor:
        """Return ``(R - mean) / std``, the unbiased standard deviation."""
        centred = returns - _group_mean(returns, group, n_groups)[group]
        if not self.divide_by_std:
            return centred
        count = torch.bincount(group, minlength=n_groups)
        squares = torch.zeros_like(count, dtype=returns.dtype)
        squares.index_add_(0, group, centred**2)
        std = (squares / (count - 1)).sqrt()
        # Equal returns have standard deviation 0 and advantage 0 / 1.
        return centred / torch.where(std > 0, std, 1.0)[group]


class RLOOAdvantage(GroupAdvantage):
    """Subtract the mean return of the group's *other* episodes.

    An unbiased baseline, because it excludes the episode's own return.

    Examples:
        >>> returns, group = torch.tensor([0.0, 1.0, 1.0]), torch.zeros(3).long()
        >>> RLOOAdvantage().relative(returns, group, 1)
        tensor([-1.0000,  0.5000,  0.5000])

    Source: A. Ahmadian et al., arXiv:2402.14740.
    """

    def relative(self, returns: Tensor, group: Tensor, n_groups: int) -> Tensor:
        """Return ``R - mean of the others``."""
        count = torch.bincount(group, minlength=n_groups).to(returns.dtype)[group]
        mean = _group_mean(returns, group, n_groups)[group]
        return (returns - mean) * count / (count - 1)


def _group_mean(returns: Tensor, group: Tensor, n_groups: int) -> Tensor:
    count = torch.bincount(group, minlength=n_groups)
    total = torch.zeros(n_groups, dtype=returns.dtype, device=returns.device)
    return total.index_add_(0, group, returns) / count
