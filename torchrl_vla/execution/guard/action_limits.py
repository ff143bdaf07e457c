"""Limits of actions and of their change per step, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

_ROUNDINGS = 8  # of the chunk's dtype, which a step of exactly the limit may exceed


class ActionLimits:
    """Compare actions ``[*B, H, A]`` with a range per dimension, and clip them to it.

    The limits are compared in the actions' own dtype, so that a float32 action at the
    limit is within it. They are cached per device and dtype, so that no call copies.

    Args:
        low: smallest legal action per dimension; None = any finite number is legal.
        high: largest legal action per dimension.

    Examples:
        >>> limits = ActionLimits((-1.0,), (1.0,))
        >>> limits.legal(torch.tensor([[0.5], [2.0], [torch.nan]])).flatten()
        tensor([ True, False, False])
        >>> limits.clip(torch.tensor([[0.5], [2.0]])).flatten()
        tensor([0.5000, 1.0000])
    """

    def __init__(
        self, low: Sequence[float] | None = None, high: Sequence[float] | None = None
    ) -> None:
        self._bounds = None if low is None or high is None else (low, high)
        self._cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def legal(self, actions: Tensor) -> Tensor:
        """Return bool ``[*B, H, A]``, True = finite and within the range."""
        if self._bounds is None:
            return actions.isfinite()
        low, high = self._tensors(actions)
        return (actions >= low) & (actions <= high)  # False for NaN

    def clip(self, actions: Tensor) -> Tensor:
        """Return the actions, moved to the nearest legal number where they are not."""
        if self._bounds is None:
            return actions
        return torch.clamp(actions, *self._tensors(actions))

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        place = (like.device, like.dtype)
        if place not in self._cache:
            low, high = (
                torch.tensor(bound, dtype=like.dtype, device=like.device)
                for bound in self._bounds or ()
            )
            self._cache[place] = (low, high)
        return self._cache[place]


class StepLimit:
    """Compare successive actions with the largest legal change per step (rate limit).

    Args:
        max_step: largest change from one control step to the next, in the actions'
            units: one number per dimension, or one for all.
        action_dim: ``A``, which as many numbers must match; None = not compared.

    Raises:
        ValueError: a number is not positive and finite, or there are not ``A``.

    Examples:
        >>> limit = StepLimit(1.0)
        >>> actions = torch.tensor([[0.0], [0.5], [3.0], [3.5]])
        >>> limit.legal(actions).flatten()
        tensor([ True,  True, False,  True])
        >>> limit.clip(actions).flatten()
        tensor([0.0000, 0.5000, 1.5000, 2.5000])
    """

    def __init__(
        self, max_step: float | Sequence[float], action_dim: int | None = None
    ) -> None:
        self.max_step = torch.as_tensor(max_step, dtype=torch.float64)
        if not all(x > 0 and isfinite(x) for x in self.max_step.reshape(-1).tolist()):
            raise ValueError(
                "ActionGuard: expected positive, finite numbers at argument "
                f"'max_step', got {max_step}. Leave it out for no rate limit."
            )
        shape = self.max_step.shape
        if shape and action_dim is not None and shape != (action_dim,):
            raise ValueError(
                f"ActionGuard: expected one number or action_dim={action_dim} numbers "
                f"at argument 'max_step', got {list(shape)}."
            )

    def legal(
        self,
        actions: Tensor,
        before: Tensor | None = None,
        comparable: Tensor | None = None,
    ) -> Tensor:
        """Return bool ``[*B, H, A]``, True = as near to the action before as it must.

        Args:
            actions: ``[*B, H, A]``.
            before: ``[*B, A]``, the action before the first; None = there is none.
            comparable: bool ``[*B]``, where ``before`` counts; None = everywhere.
        """
        ones = torch.ones_like(actions[..., :1, :], dtype=torch.bool)
        inside = self._near(actions[..., 1:, :], actions[..., :-1, :])
        if before is None:
            return torch.cat([ones, inside], -2)
        first = self._near(actions[..., :1, :], before.unsqueeze(-2))
        if comparable is not None:
            first = first | ~comparable[..., None, None]
        return torch.cat([first, inside], -2)

    def clip(
        self,
        actions: Tensor,
        before: Tensor | None = None,
        comparable: Tensor | None = None,
    ) -> Tensor:
        """Return the actions, each at most a legal step from the one before it.

        Args:
            actions: ``[*B, H, A]``, finite.
            before: see :meth:`legal`.
            comparable: see :meth:`legal`.
        """
        out: list[Tensor] = []
        for action in actions.unbind(-2):
            moved = action
            if before is not None:
                step = self.max_step.to(action)
                moved = torch.clamp(action, before - step, before + step)
                if comparable is not None and not out:
                    moved = torch.where(comparable.unsqueeze(-1), moved, action)
            out.append(moved)
            before = moved
        return torch.stack(out, -2)

    def _near(self, actions: Tensor, before: Tensor) -> Tensor:
        rounding = _ROUNDINGS * torch.finfo(actions.dtype).eps * before.abs()
        return (actions - before).abs() <= self.max_step.to(actions) + rounding
