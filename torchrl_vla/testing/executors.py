"""The contract of an executor of action chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    IS_DECISION_KEY,
    IS_INIT_KEY,
    LOG_PROBS_KEY,
)


def check_executor(
    make_executor: Callable[[TensorDictModuleBase], TensorDictModuleBase],
    *,
    chunk_size: int,
    replan_interval: int | None = None,
    num_envs: int = 3,
    num_steps: int = 40,
    seed: int = 0,
) -> None:
    """Check an executor against a naive one, under episodes that end at random.

    The contract: at each step each environment executes the next action of its chunk;
    its policy is asked when, and only when, its episode begins or its actions are used
    up, about that environment's observation; ``is_decision`` marks these steps; the
    policy's other outputs are those of the chunk in execution; the chunk is not
    written; what was handed out is never written to again.

    Args:
        make_executor: wraps an actor, which reads ``observation`` and writes
            ``action_chunk`` ``[*B, H, A]``, ``action_tokens`` and ``log_probs``.

    Keyword Args:
        chunk_size: ``H`` of that actor.
        replan_interval: the actions of a chunk that the executor is to execute; None =
            all of them.
        num_envs: how many environments are stepped at once.
        num_steps: how many steps are played.
        seed: decides when episodes end.

    Raises:
        AssertionError: the contract is broken; the message says how.

    Examples:
        >>> class FirstAction(TensorDictModuleBase):
        ...     in_keys, out_keys = ["observation"], ["action"]
        ...     def __init__(self, actor):
        ...         super().__init__()
        ...         self.actor = actor
        ...     def forward(self, td):
        ...         asked = self.actor(td.select("observation"))
        ...         return td.set("action", asked["action_chunk"][:, 0])
        >>> check_executor(FirstAction, chunk_size=2)
        Traceback (most recent call last):
        ...
        AssertionError: FirstAction: expected [0, 1, 2] at 'action_tokens' of step 0, \
got None.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(num_steps, num_envs, generator=generator) < 0.2
    starts[0] = True
    starts[num_steps // 2 :, 0] = False  # one environment runs long
    for carries in (False, True):
        actor = _ClockActor(chunk_size)
        executor = make_executor(actor)
        expected = _execute_naively(starts, replan_interval or chunk_size)
        _play(executor, actor, starts, expected, carries)


class _ClockActor(TensorDictModuleBase):
    """Write ``chunk[h] = observation + h / 1000`` and remember who was asked."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = [ACTION_CHUNK_KEY, ACTION_TOKENS_KEY, LOG_PROBS_KEY]
        self.ahead = torch.arange(chunk_size) / 1000
        self.asked: list[Tensor] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        seen = tensordict["observation"]
        self.asked.append(seen.flatten().clone())
        tensordict.set(ACTION_CHUNK_KEY, (seen + self.ahead).unsqueeze(-1))
        tensordict.set(ACTION_TOKENS_KEY, seen.long())
        return tensordict.set(LOG_PROBS_KEY, -seen.squeeze(-1))


def _observe(step: int, row: int) -> float:
    return float(100 * step + row)


def _execute_naively(
    starts: Tensor, interval: int
) -> list[list[tuple[float, int, bool]]]:
    """Return (observation planned from, position, is_decision) per step and row."""
    plans: list[tuple[float, int]] = [(0.0, 0)] * starts.shape[1]
    out = []
    for step, row_starts in enumerate(starts.tolist()):
        line = []
        for row, starts_here in enumerate(row_starts):
            planned_from, position = plans[row]
            asks = starts_here or position == interval
            if asks:
                planned_from, position = _observe(step, row), 0
            line.append((planned_from, position, asks))
            plans[row] = (planned_from, position + 1)
        out.append(line)
    return out


def _play(
    executor: TensorDictModuleBase,
    actor: _ClockActor,
    starts: Tensor,
    expected: list[list[tuple[float, int, bool]]],
    carries: bool,
) -> None:
    """Compare step by step; ``carries`` keeps outputs in the data, as rollouts do."""
    name, num_envs = type(executor).__name__, starts.shape[1]
    handed_out: list[TensorDictBase] = []
    copies: list[TensorDictBase] = []
    td = TensorDict(batch_size=[num_envs])
    for step, line in enumerate(expected):
        td = td.exclude(ACTION_KEY) if carries else TensorDict(batch_size=[num_envs])
        rows = torch.tensor([[_observe(step, row)] for row in range(num_envs)])
        td.set("observation", rows)
        td.set(IS_INIT_KEY, starts[step].unsqueeze(-1).clone())
        actor.asked.clear()
        td = executor(td)
        _check_step(name, actor, td, step, line)
        handed_out.append(td.copy())
        copies.append(td.clone())
    for step, (td, copy) in enumerate(zip(handed_out, copies)):
        for key, value in copy.items(True, True):
            if not torch.equal(td.get(key), value):
                raise AssertionError(
                    f"{name}: expected {key!r} of step {step} to stay as it was handed "
                    "out, got other values later."
                )


def _check_step(
    name: str,
    actor: _ClockActor,
    td: TensorDictBase,
    step: int,
    line: list[tuple[float, int, bool]],
) -> None:
    due = [row for row, (_, _, asks) in enumerate(line) if asks]
    seen = torch.cat(actor.asked).tolist() if actor.asked else []
    asked = [round(value - _observe(step, 0)) for value in seen]
    if sorted(asked) != due:
        raise AssertionError(
            f"{name}: expected the actor to be asked about rows {due} at step {step}, "
            f"got {sorted(asked)}."
        )
    if td.get(ACTION_CHUNK_KEY, None) is not None:
        raise AssertionError(
            f"{name}: expected no {ACTION_CHUNK_KEY!r} in what it writes: a rollout "
            "would hold it at every step."
        )
    plans = torch.tensor([planned_from for planned_from, _, _ in line])
    positions = torch.tensor([position for _, position, _ in line])
    for key, value in (
        (ACTION_KEY, (plans + positions / 1000).unsqueeze(-1)),
        (ACTION_TOKENS_KEY, plans.long().unsqueeze(-1)),
        (LOG_PROBS_KEY, -plans),
        (IS_DECISION_KEY, torch.tensor([[asks] for _, _, asks in line])),
    ):
        got = td.get(key, None)
        if got is None or not torch.equal(got, value):
            shown = None if got is None else got.flatten().tolist()
            raise AssertionError(
                f"{name}: expected {value.flatten().tolist()} at {key!r} of step "
                f"{step}, got {shown}."
            )
