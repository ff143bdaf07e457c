"""Targets and masks of decisions that last several steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    EXECUTED_STEPS_KEY,
    IS_EXECUTED_KEY,
    RETURN_TO_GO_KEY,
    MissingKeyError,
    SchemaError,
)


@dataclass
class DecisionKeys:
    """Keys of a batch of decisions.

    Args:
        action: the chunk, or the latent that was chosen, ``[N, H, A]``.
        executed: bool ``[N, H]``, True = executed.
        steps: int64 ``[N, 1]``, base steps of the decision.
        reward: float ``[N, 1]``, summed over them.
        done: bool ``[N, 1]``, True = the episode ended.
        terminated: bool ``[N, 1]``, True = nothing follows.
        return_to_go: float ``[N, 1]``, see :class:`ChunkCalQLLoss`.
    """

    action: NestedKey = ACTION_CHUNK_KEY
    executed: NestedKey = ("next", IS_EXECUTED_KEY)
    steps: NestedKey = ("next", EXECUTED_STEPS_KEY)
    reward: NestedKey = ("next", "reward")
    done: NestedKey = ("next", "done")
    terminated: NestedKey = ("next", "terminated")
    return_to_go: NestedKey = RETURN_TO_GO_KEY


def read_decisions(tensordict: TensorDictBase, key: NestedKey, caller: str) -> Tensor:
    """Return an entry of decisions, or raise naming what there is."""
    value = tensordict.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"{caller}: expected {key!r} of decisions, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Collect with "
            "MultiAction, or use select_decisions."
        )
    return value


def decision_targets(
    tensordict: TensorDictBase,
    next_value: Tensor,
    *,
    gamma: float,
    truncated_is_failure: bool = False,
    keys: DecisionKeys = DecisionKeys(),
    caller: str = "decision_targets",
) -> Tensor:
    """Return ``r + gamma^k V(s')`` of decisions that lasted ``k`` steps, ``[N]``.

    ``V`` is left out where nothing follows: after a success, and after a truncation
    where ``truncated_is_failure``. Any other truncation is bootstrapped.

    **Reads** ``next``: ``reward``, ``executed_steps``, ``done`` and ``terminated``.

    Args:
        tensordict: decisions ``[N]``.
        next_value: float ``[N]``, of the observation after each.

    Keyword Args:
        gamma: discount of one control step, not of a decision.
        truncated_is_failure: True = the time limit is part of the task.
        keys: of the entries.
        caller: opens the error messages.

    Raises:
        MissingKeyError: an entry is missing. Without ``executed_steps`` a decision
            would be discounted as one step.

    Examples:
        >>> from tensordict import TensorDict
        >>> flag = torch.tensor([[False], [True]])
        >>> data = TensorDict(
        ...     next=TensorDict(
        ...         reward=torch.tensor([[0.0], [1.0]]),
        ...         executed_steps=torch.tensor([[3], [2]]),
        ...         done=flag,
        ...         terminated=flag,
        ...         batch_size=[2],
        ...     ),
        ...     batch_size=[2],
        ... )
        >>> decision_targets(data, torch.tensor([8.0, 8.0]), gamma=0.5)
        tensor([1., 1.])

    Source: R. Sutton, D. Precup, S. Singh, Artificial Intelligence 112 (1999), options
    of semi-Markov decision processes.
    """
    reward = read_decisions(tensordict, keys.reward, caller).squeeze(-1)
    steps = read_decisions(tensordict, keys.steps, caller).squeeze(-1)
    end = keys.done if truncated_is_failure else keys.terminated
    ended = read_decisions(tensordict, end, caller).squeeze(-1)
    # 1.0 ** k is exact, and a gamma of float64 would widen the targets.
    discount = torch.as_tensor(gamma, dtype=next_value.dtype, device=reward.device)
    follows = torch.where(ended, 0.0, next_value.detach())
    return reward + discount**steps * follows


def read_chunk(
    tensordict: TensorDictBase, keys: DecisionKeys, caller: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return chunk, positions that were executed, and positions that count.

    A position counts where it was executed, and everywhere in a decision that the end
    of the episode cut short: when it was made nobody knew that it would be. The chunk
    has no gradient where it was not executed.

    Returns:
        The chunk ``[N, H, A]``; executed and counting positions, bool ``[N, H]``.

    Raises:
        MissingKeyError: an entry is missing.
        SchemaError: the mask is not bool ``[N, H]``, or nothing was executed.
    """
    chunk = read_decisions(tensordict, keys.action, caller)
    executed = read_decisions(tensordict, keys.executed, caller)
    done = read_decisions(tensordict, keys.done, caller)
    if executed.dtype != torch.bool or executed.shape != chunk.shape[:-1]:
        raise SchemaError(
            f"{caller}: expected bool {list(chunk.shape[:-1])} at {keys.executed!r} "
            f"(True = executed) for a chunk {list(chunk.shape)}, got {executed.dtype} "
            f"{list(executed.shape)}. select_decisions and MultiAction write it, for "
            "the policy's own chunk_size."
        )
    if not torch.compiler.is_compiling() and not executed.any(-1).all():
        raise SchemaError(
            f"{caller}: expected an executed position in each decision at "
            f"{keys.executed!r}, got none in {int((~executed.any(-1)).sum())} of "
            f"{len(executed)}. The polarity may be inverted."
        )
    chunk = torch.where(executed.unsqueeze(-1), chunk, chunk.detach())
    return chunk, executed, executed | done
