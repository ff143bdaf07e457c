"""What everything that serves one action a step has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_KEY,
    DECISION_INDEX_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    IS_WAITING_KEY,
    OBSERVATION_NEEDED_KEY,
    ExecutionError,
    MissingKeyError,
)


class Executor(TensorDictModuleBase, ABC):
    """Write one action a step, and know which rows begin and whose rows they are.

    One executor serves one environment, every step of an episode through it. When a
    tensordict shows that another environment used it in between, it raises rather
    than act on what it remembers of something else; when it carries an action that
    this executor did not choose (a collector's random frames), every row begins
    afresh. Everything that a member remembers is in ``_state``, which has
    ``batch_size`` and ``serials`` (int64 ``[*B, 1]``, what it wrote at
    ``decision_index``): a move, a copy and :meth:`reset` drop it, and planning afresh
    is always right.

    **Reads** ``is_init`` bool ``[*B, 1]``, True = first step of an episode (TorchRL's
    ``InitTracker`` writes it); ``decision_index`` as it was written on the step before,
    and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` bool ``[*B, 1]``, True on the
    first step of a chunk's execution; ``decision_index`` int64 ``[*B, 1]``, which
    decision is in execution, unique in the process; ``observation_needed`` bool ``[*B,
    1]``, False = the policy will not look at the observation that this step produces.

    Keyword Args:
        action_key: where the single action is written.
        init_key: where the first step of an episode is marked.
        decision_key: where the decision mask is written.
        decision_index_key: where the decision's number is written.

    Raises:
        MissingKeyError: the tensordict has no ``is_init``, or rows have to wait in an
            environment without :class:`SkipWaiting`.
        ExecutionError: the batch size changed in mid-episode, or the tensordict comes
            from another environment.
    """

    _state: Any

    def __init__(
        self,
        *,
        action_key: NestedKey = ACTION_KEY,
        init_key: NestedKey = IS_INIT_KEY,
        decision_key: NestedKey = IS_DECISION_KEY,
        decision_index_key: NestedKey = DECISION_INDEX_KEY,
    ) -> None:
        super().__init__()
        self.action_key = unravel_key(action_key)
        self.init_key = unravel_key(init_key)
        self.decision_key = unravel_key(decision_key)
        self.decision_index_key = unravel_key(decision_index_key)
        self._state = None

    @property
    def makes_wait(self) -> bool:
        """True = rows may wait, which takes :class:`SkipWaiting` in the environment."""
        return False

    def reset(self) -> None:
        """Forget everything: the next step begins afresh for all environments."""
        self._state = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next action, asking the policy where it is due."""
        if self.makes_wait:
            self._check_can_wait(tensordict)
        return self._serve(tensordict, self._rows_that_begin(tensordict))

    @abstractmethod
    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        """Write this step's action, knowing the rows that begin (bool ``[*B]``).

        Where ``_state`` is None, every row begins.
        """

    def _rows_that_begin(self, tensordict: TensorDictBase) -> Tensor:
        """Return the rows of which what is remembered does not count, bool ``[*B]``."""
        is_init = tensordict.get(self.init_key, None)
        if is_init is None:
            raise MissingKeyError(
                f"{self._name}: expected a bool [*B, 1] at {self.init_key!r}, "
                f"got only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "InitTracker() to the environment: it marks the first step of each "
                "episode. No action was sent."
            )
        batch_size = tensordict.batch_size
        if self._state is not None and self._state.batch_size != batch_size:
            self._check_new_batch(is_init, batch_size)
            self.reset()
        if self._state is not None:
            carried = tensordict.get(self.decision_index_key, None)
            if carried is not None or tensordict.get(self.action_key, None) is None:
                self._check_same_stream(carried, is_init)
                return (
                    is_init.squeeze(-1)  # a view in a third of the time of reshape
                    if is_init.ndim > len(batch_size)
                    else is_init.reshape(batch_size)
                )
            self.reset()  # another one acted, such as a collector at random
        return torch.ones(batch_size, dtype=torch.bool, device=is_init.device)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_can_wait(self, tensordict: TensorDictBase) -> None:
        if tensordict.numel() > 1 and tensordict.get(IS_WAITING_KEY, None) is None:
            raise MissingKeyError(
                f"{self._name}: expected a bool [*B, 1] at {IS_WAITING_KEY!r}, got "
                f"only {sorted(map(str, tensordict.keys(True, True)))}. Append "
                "SkipWaiting() to the environment, after its other transforms: without "
                "it rows that wait would be stepped. No action was sent."
            )

    def _check_new_batch(self, is_init: Tensor, batch_size: torch.Size) -> None:
        if not is_init.all():
            raise ExecutionError(
                f"{self._name}: expected batch size "
                f"{list(self._state.batch_size)}, that of the chunks in execution, got "
                f"{list(batch_size)} in mid-episode. Give each environment its own "
                f"{self._name}(actor), or call reset() to plan afresh. No "
                "action was sent."
            )

    def _check_same_stream(self, carried: Tensor | None, is_init: Tensor) -> None:
        ours = self._state.serials
        if carried is None or carried is ours or torch.equal(carried, ours):
            return
        foreign = (carried != ours) & ~is_init.reshape(ours.shape)
        if foreign.any():
            raise ExecutionError(
                f"{self._name}: expected the environment whose decisions "
                f"{ours[foreign].tolist()} are in execution, got one at "
                f"{carried[foreign].tolist()} (key {self.decision_index_key!r}): "
                "another environment used this executor in between. Give each "
                f"environment its own {self._name}(actor), or call reset() to "
                "plan afresh. No action was sent."
            )

    def _write(
        self,
        tensordict: TensorDictBase,
        action: Tensor,
        asked: Tensor | None,
        outputs: dict[NestedKey, Any],
        observation_needed: Tensor | None = None,
    ) -> TensorDictBase:
        """Write a step's action and marks.

        ``asked`` None = no row was, ``observation_needed`` None = all rows are. Both
        are bool ``[*B]``, ``observation_needed`` a tensor of its own;
        ``_state.serials`` are written as the decision's number.
        """
        serials = self._state.serials
        tensordict.set(self.action_key, action)
        tensordict.set(self.decision_key, flag(asked, serials, default=False))
        if tensordict.get(self.decision_index_key, None) is not serials:
            tensordict.set(self.decision_index_key, serials)
        if observation_needed is None:
            tensordict.set(
                OBSERVATION_NEEDED_KEY, torch.ones_like(serials, dtype=torch.bool)
            )
        else:
            tensordict.set(OBSERVATION_NEEDED_KEY, observation_needed.unsqueeze(-1))
        for key, value in outputs.items():
            tensordict.set(key, value)
        return tensordict

    def _apply(self, fn: Any, recurse: bool = True) -> Executor:
        # What is remembered is no buffer (its shape is the environment's business), so
        # a move or cast drops it.
        self.reset()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}


def flag(rows: Tensor | None, like: Tensor, default: bool) -> Tensor:
    """Return a fresh bool ``[*B, 1]``: ``rows`` may be a view of ``is_init``."""
    if rows is None:
        fresh = torch.ones_like if default else torch.zeros_like
        return fresh(like, dtype=torch.bool)
    return rows.unsqueeze(-1).clone()
