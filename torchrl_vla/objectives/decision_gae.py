"""Generalized advantage estimation over decisions of different durations."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import EXECUTED_STEPS_KEY, MissingKeyError, SchemaError


class DecisionGAE:
    """Write advantages and value targets of decisions ``[*B, T]``.

    A decision that executed ``k`` steps discounts what follows by ``gamma ** k``.
    With ``gamma`` per decision, time inside a chunk would cost nothing; TorchRL's
    ``GAE`` module does that. A decision is one policy query: an option step of ``k``
    base steps in a semi-Markov decision process.

    **Reads** what the critic reads, at the root and under ``next``;
    ``("next", "reward")`` float, ``("next", "done")`` and ``("next", "terminated")``
    bool, each ``[*B, T, 1]``; ``("next", "executed_steps")`` int64 ``[*B, T, 1]``.
    **Writes** ``state_value``, ``advantage`` and ``value_target`` float
    ``[*B, T, 1]``. The end of the batch and, unless ``truncated_is_failure``, a
    truncated episode are bootstrapped with the critic's value of the last observation;
    a terminated one with 0.

    Args:
        critic: writes ``value_key`` from an observation.

    Keyword Args:
        gamma: discount of one control step, not of a decision.
        lmbda: of one decision: 1 = Monte Carlo, 0 = one decision ahead.
        truncated_is_failure: True = the value after the time limit is 0, for tasks
            whose success counts only within the limit. False = it is the critic's, for
            limits that are not part of the task.
        value_key: where the critic writes.

    Raises:
        ValueError: ``gamma`` or ``lmbda`` is not in [0, 1].
        MissingKeyError: ``executed_steps`` or another key is missing.
        SchemaError: the batch has no time dimension.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(lambda s: s, ["state"], ["state_value"])
        >>> flag = torch.tensor([[[False], [True]]])
        >>> data = TensorDict(
        ...     {
        ...         "state": torch.zeros(1, 2, 1),
        ...         "next": {
        ...             "state": torch.zeros(1, 2, 1),
        ...             "reward": torch.tensor([[[0.0], [1.0]]]),
        ...             "executed_steps": torch.tensor([[[3], [2]]]),
        ...             "done": flag,
        ...             "terminated": flag,
        ...         },
        ...     },
        ...     batch_size=[1, 2],
        ... )
        >>> DecisionGAE(critic, gamma=0.5, lmbda=1.0)(data)["advantage"].flatten()
        tensor([0.1250, 1.0000])

    Source: J. Schulman et al., arXiv:1506.02438; the discount of semi-Markov decisions,
    R. Sutton, D. Precup, S. Singh, Artificial Intelligence 112 (1999); the two kinds
    of time limit, F. Pardo et al., arXiv:1712.00378.
    """

    def __init__(
        self,
        critic: TensorDictModuleBase,
        *,
        gamma: float = 0.99,
        lmbda: float = 0.95,
        truncated_is_failure: bool = False,
        value_key: NestedKey = "state_value",
    ) -> None:
        for name, value in (("gamma", gamma), ("lmbda", lmbda)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"DecisionGAE: expected {name} in [0, 1], got {value}."
                )
        self.critic = critic
        self.gamma = gamma
        self.lmbda = lmbda
        self.truncated_is_failure = truncated_is_failure
        self.value_key = value_key

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write value, advantage and target; returns the same tensordict."""
        if len(tensordict.batch_size) < 2:
            raise SchemaError(
                "DecisionGAE: expected decisions [*B, T], time last, got batch size "
                f"{list(tensordict.batch_size)}. Collect them with MultiAction."
            )
        value = self._value(tensordict)
        next_value = self._value(self._read(tensordict, "next"))
        steps = self._read(tensordict, ("next", EXECUTED_STEPS_KEY))
        reward = self._read(tensordict, ("next", "reward"))
        done = self._read(tensordict, ("next", "done"))
        terminated = self._read(tensordict, ("next", "terminated"))
        gamma = torch.as_tensor(self.gamma, dtype=value.dtype, device=value.device)
        discount = gamma**steps
        ended = done if self.truncated_is_failure else terminated
        delta = reward + discount * next_value * ~ended - value
        advantage = _accumulate(delta, discount * self.lmbda * ~done)
        tensordict.set(self.value_key, value)
        tensordict.set("advantage", advantage)
        return tensordict.set("value_target", advantage + value)

    def _value(self, tensordict: TensorDictBase) -> Tensor:
        inputs = tensordict.select(*self.critic.in_keys, strict=False)
        return self.critic(inputs).get(self.value_key)

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"DecisionGAE: expected {key!r} of decisions, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Collect with "
                "MultiAction, or use select_decisions."
            )
        return value


def _accumulate(delta: Tensor, carry: Tensor) -> Tensor:
    """Return ``a[t] = delta[t] + carry[t] * a[t + 1]`` along the time ``[*B, T, 1]``.

    TorchRL's vectorized estimate takes a discount per step too, but fails on a single
    one (IndexError in 0.14.1) and builds ``[T, T]`` matrices; an episode has few
    decisions.
    """
    total = torch.zeros_like(delta[..., 0, :])
    steps = []
    for one, carried in zip(
        delta.flip(-2).unbind(-2), carry.flip(-2).unbind(-2), strict=True
    ):
        total = one + carried * total
        steps.append(total)
    return torch.stack(steps, -2).flip(-2)
