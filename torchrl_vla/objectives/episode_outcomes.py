"""Episodes of a rollout, and whether each of them achieved its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.schema import SUCCESS_KEY, SchemaError, read_flags


@dataclass
class EpisodeOutcomes:
    """The episodes of a rollout ``[*B, T]``, numbered along its rows.

    An episode succeeds when its task is achieved at any of its steps, or was before the
    first one, as in an evaluation.

    Args:
        number: of the episode of each step, int64 ``[R, T]``.
        is_complete: True = the episode has ended, bool ``[E]``.
        success: True = the episode succeeded, bool ``[E]``; None where the rollout has
            no ``("next", "success")``.

    Examples:
        >>> from tensordict import TensorDict
        >>> flags = torch.tensor([[[False], [True], [False]]])
        >>> data = TensorDict(
        ...     next=TensorDict(done=flags, success=flags.roll(-1, 1)),
        ...     batch_size=[1, 3],
        ... )
        >>> found = EpisodeOutcomes.from_rollout(data)
        >>> found.number, found.is_complete, found.success
        (tensor([[0, 0, 1]]), tensor([ True, False]), tensor([ True, False]))
    """

    number: Tensor
    is_complete: Tensor
    success: Tensor | None

    @classmethod
    def from_rollout(cls, rollout: TensorDictBase) -> EpisodeOutcomes:
        """Number the episodes of a rollout.

        Raises:
            SchemaError: the rollout has no time dimension; or success is something
                else than bool, or 0 and 1.
        """
        if rollout.ndim < 2:
            raise SchemaError(
                "EpisodeOutcomes: expected a rollout [*B, T] with time last, got batch "
                f"size {list(rollout.batch_size)}."
            )
        horizon = rollout.batch_size[-1]
        done = rollout.get(("next", "done")).reshape(-1, horizon)
        before = done.long().cumsum(-1) - done.long()
        per_row = before[:, -1] + 1
        number = before + (per_row.cumsum(0) - per_row).unsqueeze(-1)
        out = cls(
            number, torch.zeros(int(per_row.sum()), device=done.device).bool(), None
        )
        out.is_complete = out.any(done)
        success = rollout.get(("next", SUCCESS_KEY), None)
        if success is not None:
            out.success = out.any(read_flags("rollout", ("next", SUCCESS_KEY), success))
            at_start = rollout.get(SUCCESS_KEY, None)
            if at_start is not None:
                out.success |= out.any(read_flags("rollout", SUCCESS_KEY, at_start))
        return out

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over each episode of values of steps, ``[E]``."""
        total = values.new_zeros(len(self.is_complete))
        return total.index_add_(0, self.number.flatten(), values.flatten())

    def any(self, flags: Tensor) -> Tensor:
        """Return whether a flag is True at any step of each episode, bool ``[E]``."""
        return self.sum(flags.reshape(self.number.shape).long()) > 0
