"""From a rollout of steps to the decisions that a policy is trained on."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    EXECUTED_STEPS_KEY,
    IS_DECISION_KEY,
    IS_EXECUTED_KEY,
    SUCCESS_KEY,
    ExecutionError,
    MissingKeyError,
)


def select_decisions(
    rollout: TensorDictBase,
    chunk_size: int,
    *,
    decision_key: NestedKey = IS_DECISION_KEY,
    reward_key: NestedKey = "reward",
    success_key: NestedKey = SUCCESS_KEY,
) -> TensorDictBase:
    """Keep the steps on which the policy was asked, each with what followed from it.

    A chunk policy decides once in many steps, and only those steps hold an
    observation that its tokens and log-probs were computed from. A decision lasts
    until the next one in the same row, so the transition is the one that
    :class:`MultiAction` makes. The surprise: steps before a row's first decision
    belong to a chunk planned in an earlier batch and are left out, and a decision cut
    by the end of the rollout counts only the steps that are here.

    **Reads** a rollout ``[*B, T]`` of :class:`MultiStepActorWrapper`: ``is_decision``
    bool ``[*B, T, 1]``, ``("next", reward_key)`` float ``[*B, T, 1]``.

    **Writes** a new tensordict ``[N]``, ``N`` decisions in row order: the root of the
    decision's step; ``next`` of its last executed step, in which ``reward`` is the
    sum over the executed steps, ``success`` (where there is one) is True if it was
    on any, ``executed_steps`` is int64 ``[N, 1]`` and ``is_executed`` bool
    ``[N, H]``. Discount by ``gamma ** executed_steps``, not by ``gamma``.

    Args:
        rollout: steps; time is the last batch dimension.
        chunk_size: ``H``, the length of the policy's chunks.

    Keyword Args:
        decision_key: where the decision mask is.
        reward_key: key of the reward inside ``next``.
        success_key: key of the success flag inside ``next``.

    Raises:
        MissingKeyError: the rollout has no decision mask.
        ExecutionError: a decision was executed for more than ``chunk_size`` steps.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> rollout = TensorDict(
        ...     {
        ...         "is_decision": torch.tensor([[1, 0, 0, 1]]).bool().unsqueeze(-1),
        ...         "next": {"reward": torch.tensor([[1.0, 2, 4, 8]]).unsqueeze(-1)},
        ...     },
        ...     batch_size=[1, 4],
        ... )
        >>> decisions = select_decisions(rollout, chunk_size=3)
        >>> decisions["next", "reward"].flatten(), decisions["next", "is_executed"]
        (tensor([7., 8.]), tensor([[ True,  True,  True],
                [ True, False, False]]))
    """
    is_decision = rollout.get(decision_key, None)
    if is_decision is None:
        raise MissingKeyError(
            f"select_decisions: expected a bool [*B, T, 1] at {decision_key!r}, got "
            f"only {sorted(map(str, rollout.keys(True, True)))}. Collect the rollout "
            "with MultiStepActorWrapper."
        )
    is_decision = is_decision.reshape(-1, rollout.batch_size[-1])
    begun = is_decision.long().cumsum(-1) > 0
    flat = rollout.reshape(-1)
    decision_of_step = is_decision.flatten().long().cumsum(0) - 1
    steps = begun.flatten().nonzero().squeeze(-1)  # those that follow a decision
    decision_of_step = decision_of_step[steps]
    first = is_decision.flatten().nonzero().squeeze(-1)
    n_steps = torch.bincount(decision_of_step, minlength=len(first))
    _check_length(n_steps, chunk_size)

    decisions = flat[first]
    # Steps of one decision are neighbours in its row, so the last one is first + n - 1.
    after = flat["next"][first + n_steps - 1]
    after.set(reward_key, _sum_per_decision(flat, reward_key, steps, decision_of_step))
    if success_key in after.keys(True, True):
        success = _sum_per_decision(flat, success_key, steps, decision_of_step)
        after.set(success_key, success > 0)
    after.set(EXECUTED_STEPS_KEY, n_steps.unsqueeze(-1))
    positions = torch.arange(chunk_size, device=n_steps.device)
    after.set(IS_EXECUTED_KEY, positions < n_steps.unsqueeze(-1))
    return decisions.set("next", after)


def _sum_per_decision(
    flat: TensorDictBase, key: NestedKey, steps: Tensor, decision_of_step: Tensor
) -> Tensor:
    values = flat["next"].get(key)[steps]
    if values.dtype == torch.bool:
        values = values.long()
    n_decisions = int(decision_of_step[-1]) + 1 if len(steps) else 0
    total = values.new_zeros((n_decisions, *values.shape[1:]))
    return total.index_add_(0, decision_of_step, values)


def _check_length(n_steps: Tensor, chunk_size: int) -> None:
    if len(n_steps) and int(n_steps.max()) > chunk_size:
        raise ExecutionError(
            f"select_decisions: expected decisions of at most chunk_size={chunk_size} "
            f"steps, got one of {int(n_steps.max())}. Pass the length of the policy's "
            "chunks."
        )
