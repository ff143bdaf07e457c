"""Selection of the decisions, with their returns, from a rollout of steps."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, is_leaf_nontensor
from torch import Tensor

from torchrl_vla.schema import (
    EXECUTED_STEPS_KEY,
    IS_DECISION_KEY,
    IS_EXECUTED_KEY,
    IS_INTERVENTION_KEY,
    IS_WAITING_KEY,
    OBSERVATION_AGE_KEY,
    ROW_INDEX_KEY,
    SUCCESS_KEY,
    ExecutionError,
    MissingKeyError,
    check_positive_int,
)


def select_decisions(
    rollout: TensorDictBase,
    chunk_size: int,
    *,
    ticks: int = 1,
    decision_key: NestedKey = IS_DECISION_KEY,
    reward_key: NestedKey = "reward",
    done_key: NestedKey = "done",
    success_key: NestedKey = SUCCESS_KEY,
) -> TensorDictBase:
    """Select the decisions of a rollout, each with the outcome of its steps.

    A decision is one call of the policy and the steps that execute its chunk. Only its
    first step holds the observation that tokens and log-probs were computed from. It
    lasts until the next decision in the same environment or the end of the episode, so
    the transition is the one that :class:`MultiAction` makes.

    Note:
        Steps before an environment's first decision belong to a chunk of an earlier
        batch and are left out, and a decision that the end of the rollout cuts counts
        only the steps that are here. Steps on which an environment waited
        (``is_waiting``) or an expert acted (``is_intervention``) are no part of any
        decision.

    An executor that plans ahead executes a chunk ``observation_age`` steps after the
    observation that it was planned from. The decision then takes what the policy read,
    every entry that ``next`` has too, from that earlier step, and the executor's
    outputs from its own; a decision whose observation lies before the rollout is
    dropped.

    **Reads** a rollout ``[*B, T]`` of an :class:`Executor`: ``is_decision`` bool
    ``[*B, T, 1]``, ``("next", reward_key)`` float ``[*B, T, 1]``; where they are,
    ``("next", done_key)``, ``is_waiting`` and ``is_intervention`` bool,
    ``observation_age`` int64, all ``[*B, T, 1]``.

    **Writes** a new tensordict ``[N]``, ``N`` decisions in the order of environments:
    the root of the decision's step with ``row_index`` int64 ``[N]``, its index in the
    flattened ``*B``;
    ``next`` of its last executed step, in which ``reward`` is the sum over the
    executed steps, ``success`` (where there is one) is True if it was on any,
    ``executed_steps`` is int64 ``[N, 1]`` and ``is_executed`` bool ``[N, H]``, from
    position ``observation_age`` of the chunk on. Discount by
    ``gamma ** executed_steps``, not by ``gamma``.

    Args:
        rollout: steps; time is the last batch dimension.
        chunk_size: ``H``, the length of the policy's chunks.

    Keyword Args:
        ticks: steps for each action, of :class:`ActionInterpolation`.
        decision_key: where the decision mask is.
        reward_key: key of the reward inside ``next``.
        done_key: key of the end of an episode inside ``next``.
        success_key: key of the success flag inside ``next``.

    Raises:
        MissingKeyError: the rollout has no decision mask.
        ExecutionError: a decision was executed past the end of its chunk, or planned
            from an observation of another episode.

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
    check_positive_int("select_decisions", "ticks", ticks)
    is_decision = _mask(rollout, decision_key)
    if is_decision is None:
        raise MissingKeyError(
            f"select_decisions: expected a bool [*B, T, 1] at {decision_key!r}, got "
            f"only {sorted(map(str, rollout.keys(True, True)))}. Collect the rollout "
            "with MultiStepActorWrapper."
        )
    if rollout.device is None and is_decision.device.type != "cpu":
        # TorchRL's collector counts trajectories on the CPU unless it is told a device.
        rollout = rollout.to(is_decision.device)
    flat, n_time = rollout.reshape(-1), rollout.batch_size[-1]
    first = is_decision.flatten().nonzero().squeeze(-1)
    steps, owner = _steps_of_decisions(rollout, is_decision, done_key)
    n_steps = torch.bincount(owner, minlength=len(first))
    age = _ages(flat, first)
    _check_length(n_steps, age, chunk_size * ticks)

    decisions = flat[first]
    decisions.set(ROW_INDEX_KEY, first // n_time)
    last = first.scatter_reduce(0, owner, steps, "amax")
    after = flat["next"][last]
    after.set(reward_key, _sum_per_decision(flat, reward_key, steps, owner, first))
    if success_key in after.keys(True, True):
        success = _sum_per_decision(flat, success_key, steps, owner, first)
        after.set(success_key, success > 0)
    after.set(EXECUTED_STEPS_KEY, n_steps.unsqueeze(-1))
    # A position is executed in `ticks` steps, counted from the observation.
    begin = ticks * torch.arange(chunk_size, device=first.device)
    end = (age + n_steps).unsqueeze(-1)
    after.set(IS_EXECUTED_KEY, (begin + ticks > age.unsqueeze(-1)) & (begin < end))
    decisions.set("next", after)
    if flat.get(OBSERVATION_AGE_KEY, None) is None:
        return decisions
    return _look_back(decisions, flat, first, age, n_time, done_key)


def _mask(rollout: TensorDictBase, key: NestedKey) -> Tensor | None:
    """Return a bool of every step as ``[envs, T]``, where there is one."""
    mask = rollout.get(key, None)
    return None if mask is None else mask.reshape(-1, rollout.batch_size[-1])


def _steps_of_decisions(
    rollout: TensorDictBase, is_decision: Tensor, done_key: NestedKey
) -> tuple[Tensor, Tensor]:
    """Return the flat steps of all decisions, and the decision of each."""
    follows = is_decision.long().cumsum(-1) > 0
    for key in (IS_WAITING_KEY, IS_INTERVENTION_KEY):
        foreign = _mask(rollout, key)
        if foreign is not None:
            follows = follows & ~foreign
    owner = is_decision.flatten().long().cumsum(0) - 1
    done = _mask(rollout, ("next", *_parts(done_key)))
    if done is not None:
        ended = (done.long().cumsum(-1) - done.long()).flatten()  # before this step
        ended_at_first = ended[is_decision.flatten()]
        if len(ended_at_first):
            same = ended == ended_at_first[owner.clamp_min(0)]
            follows = follows & same.reshape(follows.shape)
    steps = follows.flatten().nonzero().squeeze(-1)
    return steps, owner[steps]


def _parts(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _ages(flat: TensorDictBase, first: Tensor) -> Tensor:
    age = flat.get(OBSERVATION_AGE_KEY, None)
    return torch.zeros_like(first) if age is None else age[first].reshape(-1)


def _look_back(
    decisions: TensorDictBase,
    flat: TensorDictBase,
    first: Tensor,
    age: Tensor,
    n_time: int,
    done_key: NestedKey,
) -> TensorDictBase:
    """Take the policy's inputs from the steps that it planned from."""
    is_here = age <= first % n_time
    decisions, first, age = decisions[is_here], first[is_here], age[is_here]
    seen = first - age
    done = flat.get(("next", *_parts(done_key)), None)
    if done is not None:
        ends = torch.nn.functional.pad(done.reshape(-1).long().cumsum(0), (1, 0))
        if (ends[first] != ends[seen]).any():
            raise ExecutionError(
                "select_decisions: expected decisions planned from observations of "
                "their own episode, got one whose 'observation_age' reaches into the "
                "one before. Count the age from the observation that was planned from."
            )
    observed = flat["next"].keys(True, True, is_leaf=is_leaf_nontensor)
    inputs = flat.select(*observed, strict=False)[seen]
    return decisions.update(inputs)


def _sum_per_decision(
    flat: TensorDictBase, key: NestedKey, steps: Tensor, owner: Tensor, first: Tensor
) -> Tensor:
    values = flat["next"].get(key)[steps]
    if values.dtype == torch.bool:
        values = values.long()
    total = values.new_zeros((len(first), *values.shape[1:]))
    return total.index_add_(0, owner, values)


def _check_length(n_steps: Tensor, age: Tensor, limit: int) -> None:
    reached = n_steps + age
    if len(reached) and int(reached.max()) > limit:
        raise ExecutionError(
            f"select_decisions: expected decisions of at most chunk_size={limit} "
            f"steps, got one of {int(reached.max())}. Pass the length of the policy's "
            "chunks."
        )
