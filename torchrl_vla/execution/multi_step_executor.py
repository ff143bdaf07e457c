"""Multi-step executor: execute a chunk one action per step, then plan again."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.execution.chunk_cache import ChunkCache
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.executor import flag
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.schema import (
    IS_WAITING_KEY,
    ExecutionError,
    check_positive_int,
)


@torchrl_spellings(
    records={
        "keys": (
            ExecutorKeys,
            {"action_keys": "action", "chunk_keys": "chunk", "init_key": "is_init"},
        )
    },
    same={"keep_dim": (False,)}
    | dict.fromkeys(("action_keys", "chunk_keys", "init_key"), (None,)),
    instead={"keep_dim": "none: the action is [*B, A]"},
)
class MultiStepActorWrapper(ChunkExecutor):
    """Execute a policy's chunk one action per step; call the policy when it is used up.

    A policy that predicts ``H`` actions need not run at each of the next ``H`` steps.
    The executor calls it only when an environment has begun an episode or has used up
    its actions, for those environments alone. The rollout holds the executed action and
    the policy's other outputs (tokens, log-probabilities), not ``[H, A]`` at every
    step.

    Note:
        What it writes on a step belongs to the chunk *in execution*: tokens and
        log-probs repeat until the next decision. Train on the steps where
        ``is_decision`` is True (:func:`select_decisions`).

    Episodes that end at different steps soon make every environment plan on its own,
    nearly one policy call a step. With ``align=True`` an environment that begins an
    episode while others are inside their chunks waits for them, and all are planned in
    one call every ``replan_interval`` steps. :class:`SkipWaiting` in the environment
    does not step those that wait; their ``action`` repeats the one before and is not
    executed. When all would wait, none does.

    **Reads** the policy's ``in_keys``; ``is_init`` bool ``[*B, 1]``, True = first step
    of an episode (TorchRL's ``InitTracker`` writes it); ``decision_index`` as it was
    written on the step before, and ``action``, if they are there.

    **Writes** ``action`` ``[*B, A]``; ``is_decision`` bool ``[*B, 1]``, True = the
    policy was called on this step; ``decision_index`` int64 ``[*B, 1]``, number of the
    decision in execution, unique in the process; ``observation_needed`` bool
    ``[*B, 1]``, True = no action is left after this step; with ``align``,
    ``is_waiting`` bool ``[*B, 1]``; every other out_key of the policy.

    Args:
        actor: the policy, which writes a chunk ``[*B, H, A]`` in robot space.
        n_steps: the ``H`` to expect; only a check, ``H`` comes from the chunk.

    Keyword Args:
        replan_interval: actions to execute per decision, ``1 .. H``. None is open
            loop (all ``H``), 1 is closed loop.
        align: True = plan for all environments at the same steps.
        keys: of what is read and written; None = ``ExecutorKeys()``. TorchRL's
            ``action_keys``, ``chunk_keys`` and ``init_key``, each one key or a list of
            one, are accepted.

    Raises:
        ValueError: the interval is not in ``1 .. n_steps``, the chunk key is
            ambiguous, or keys are given twice or for several actions.
        SpaceError: the policy is of model space.
        MissingKeyError: the tensordict has no ``is_init``, or with ``align`` the
            environment no :class:`SkipWaiting`.
        ExecutionError: the chunk is not finite, or not ``[*B, H, A]`` with the
            announced ``H``; the batch size changed in mid-episode; the tensordict
            comes from another environment than the cached chunk.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.arange(3.0).view(3, 1),
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = MultiStepActorWrapper(policy)
        >>> step = TensorDict(state=torch.zeros(1, 1), is_init=torch.ones(1, 1).bool())
        >>> step.batch_size = [1]
        >>> [executor(step.clone())["action"].item()]
        [0.0]
        >>> step["is_init"] = torch.zeros(1, 1).bool()
        >>> [executor(step.clone())["action"].item() for _ in range(3)]
        [1.0, 2.0, 0.0]
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        n_steps: int | None = None,
        *,
        replan_interval: int | None = None,
        align: bool = False,
        keys: ExecutorKeys | None = None,
    ) -> None:
        for name, value in (("n_steps", n_steps), ("replan_interval", replan_interval)):
            if value is not None:
                check_positive_int("MultiStepActorWrapper", name, value)
        if n_steps is not None and replan_interval is not None:
            _check_interval(replan_interval, n_steps, ValueError)
        super().__init__(actor, keys=keys)
        self.n_steps = n_steps
        self.replan_interval = replan_interval
        self.align = align
        if align:
            self.out_keys = [*self.out_keys, IS_WAITING_KEY]

    @property
    def makes_wait(self) -> bool:
        """True = environments may wait, which takes :class:`SkipWaiting`."""
        return self.align

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        envs = self._envs_to_plan(begins)
        if envs is not None:
            self._plan(tensordict, envs)
        cache: ChunkCache = self._state
        action = cache.pop()
        if self.align:
            tensordict.set(IS_WAITING_KEY, flag(cache.waiting, cache.serials))
        return self._write(tensordict, action, envs, cache.outputs, cache.is_last())

    def _envs_to_plan(self, begins: Tensor) -> Tensor | None:
        """Return the environments to plan for, bool ``[*B]``; None = none."""
        cache: ChunkCache | None = self._state
        if cache is None:
            return begins
        if cache.any_exhausted:
            exhausted = cache.exhausted()
            return torch.ones_like(begins) if exhausted is None else exhausted | begins
        if not begins.any():
            return None
        if not self.align:
            return begins
        return torch.ones_like(begins) if cache.wait(begins) else None

    def _plan(self, tensordict: TensorDictBase, envs: Tensor) -> None:
        cache: ChunkCache | None = None if envs.all() else self._state
        some = None if cache is None else envs
        chunk, outputs, serial = self._call_policy(tensordict, some)
        interval = self.replan_interval or chunk.shape[-2]
        actions = chunk[..., :interval, :]
        if cache is None:
            self._state = ChunkCache(actions, outputs, serial)
        elif interval != cache.interval:
            raise ExecutionError(
                f"MultiStepActorWrapper: expected chunks of {cache.interval} "
                f"steps at {self.chunk_key!r} as in the plans still in execution, got "
                f"{interval}. Give a fixed replan_interval. No action was sent."
            )
        else:
            cache.replace(envs, actions, outputs, serial)

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        super()._check_chunk(chunk, batch_size)
        length = chunk.shape[-2]
        if self.n_steps not in (None, length):
            raise ExecutionError(
                f"MultiStepActorWrapper: expected a chunk of n_steps={self.n_steps} "
                f"actions at {self.chunk_key!r}, got {length}. Leave n_steps out to "
                "take the length from the chunk. No action was sent."
            )
        if self.replan_interval is not None:
            _check_interval(self.replan_interval, length, ExecutionError)

    def extra_repr(self) -> str:
        """Show how often the policy is called."""
        return (
            f"n_steps={self.n_steps}, replan_interval={self.replan_interval}, "
            f"align={self.align}, "
            f"chunk_key={self.chunk_key!r}, action_key={self.keys.action!r}"
        )


def _check_interval(interval: int, length: int, error: type[Exception]) -> None:
    if interval > length:
        raise error(
            f"MultiStepActorWrapper: expected replan_interval in 1..{length}, the "
            f"chunk's length, got {interval}. A chunk cannot be executed for longer "
            "than it is."
        )
