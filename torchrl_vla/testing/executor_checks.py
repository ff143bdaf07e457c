"""Contract check of a chunk executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
    IS_WAITING_KEY,
    LOG_PROBS_KEY,
    OBSERVATION_NEEDED_KEY,
)


@dataclass(frozen=True)
class ServedStep:
    """What an executor has to do for one row on one step.

    Args:
        action: what it executes; see :func:`predicted_action`.
        planned_at: the step on which the policy saw what the chunk in execution was
            planned from.
        is_asked: True = the policy is called for this env index on this step.
        is_decision: True = a chunk's execution begins; None = as ``is_asked``.
        is_waiting: True = the row is not to be stepped; its action does not matter.
    """

    action: float
    planned_at: int
    is_asked: bool
    is_decision: bool | None = None
    is_waiting: bool = False

    @property
    def begins(self) -> bool:
        """True = a chunk's execution begins on this step."""
        return self.is_asked if self.is_decision is None else self.is_decision


#: Says what every row has to do on every step, ``[T][B]``, given which of them begin
#: an episode there.
Reference = Callable[[Sequence[Sequence[bool]]], Sequence[Sequence[ServedStep]]]


def predicted_action(planned_at: int, row: int, position: int) -> float:
    """Return position ``position`` of the chunk that a row's policy plans on a step.

    Examples:
        >>> predicted_action(planned_at=2, row=1, position=3)
        201.003
    """
    return 100 * planned_at + row + position / 1000


def check_executor(
    make_executor: Callable[[TensorDictModuleBase], TensorDictModuleBase],
    *,
    chunk_size: int,
    replan_interval: int | None = None,
    reference: Reference | None = None,
    num_envs: int = 3,
    num_steps: int = 40,
    seed: int = 0,
) -> None:
    """Check an executor against a naive one, under episodes that end at random.

    The contract, unless ``reference`` says otherwise: at each step each environment
    executes the next action of its chunk; its policy is called when, and only when, its
    episode begins or its actions are used up. For every executor: the policy sees that
    environment's observation; ``is_decision`` marks the steps on which a chunk's
    execution begins; the policy's other outputs are those of the chunk in execution;
    where ``observation_needed`` is False the policy does not read the next observation
    (an episode's first one excepted); the chunk is not written; returned tensors are
    never written to again.

    Args:
        make_executor: wraps an actor, which reads ``observation`` and writes
            ``action_chunk`` ``[*B, H, A]``, ``action_tokens`` and ``log_probs``.

    Keyword Args:
        chunk_size: ``H`` of that actor.
        replan_interval: the actions of a chunk that the executor is to execute; None =
            all of them. Not used with a ``reference``.
        reference: what the executor is to do, naively; None = execute the first
            ``replan_interval`` actions of each chunk.
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
    if reference is None:
        reference = partial(_execute_naively, interval=replan_interval or chunk_size)
    for carries in (False, True):
        actor = _ClockActor(chunk_size)
        executor = make_executor(actor)
        _play(executor, actor, starts, reference(starts.tolist()), carries)


class _ClockActor(TensorDictModuleBase):
    """Write :func:`predicted_action` and record the env indices of each call."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = [ACTION_CHUNK_KEY, ACTION_TOKENS_KEY, LOG_PROBS_KEY]
        self.ahead = torch.arange(chunk_size, dtype=torch.float64) / 1000
        self.asked: list[Tensor] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        seen = tensordict["observation"]
        self.asked.append(seen.flatten().clone())
        tensordict.set(ACTION_CHUNK_KEY, (seen + self.ahead).unsqueeze(-1))
        tensordict.set(ACTION_TOKENS_KEY, seen.long())
        return tensordict.set(LOG_PROBS_KEY, -seen.squeeze(-1))


def _observe(step: int, row: int) -> float:
    return predicted_action(step, row, 0)


def _execute_naively(
    starts: Sequence[Sequence[bool]], interval: int
) -> list[list[ServedStep]]:
    plans = [(0, 0)] * len(starts[0])  # planned at, position
    out = []
    for step, row_starts in enumerate(starts):
        line = []
        for row, starts_here in enumerate(row_starts):
            planned_at, position = plans[row]
            asks = starts_here or position == interval
            if asks:
                planned_at, position = step, 0
            action = predicted_action(planned_at, row, position)
            line.append(ServedStep(action, planned_at, asks))
            plans[row] = (planned_at, position + 1)
        out.append(line)
    return out


def _play(
    executor: TensorDictModuleBase,
    actor: _ClockActor,
    starts: Tensor,
    expected: Sequence[Sequence[ServedStep]],
    carries: bool,
) -> None:
    """Compare step by step; ``carries`` keeps outputs in the data, as rollouts do."""
    name, num_envs = type(executor).__name__, starts.shape[1]
    handed_out: list[TensorDictBase] = []
    copies: list[TensorDictBase] = []
    td = TensorDict(batch_size=[num_envs])
    may_look = torch.ones(num_envs, 1, dtype=torch.bool)
    for step, line in enumerate(expected):
        td = td.exclude(ACTION_KEY) if carries else TensorDict(batch_size=[num_envs])
        rows = [[_observe(step, row)] for row in range(num_envs)]
        td.set("observation", torch.tensor(rows, dtype=torch.float64))
        td.set(IS_INIT_KEY, starts[step].unsqueeze(-1).clone())
        # As SkipWaiting does: rows may wait here.
        td.set(IS_WAITING_KEY, torch.zeros(num_envs, 1, dtype=torch.bool))
        actor.asked.clear()
        if not carries and starts[step].all():
            # Two episodes that begin one after the other look like two streams.
            getattr(executor, "reset", bool)()
        td = executor(td)
        _check_step(name, actor, td, step, line, may_look)
        may_look = td.get(OBSERVATION_NEEDED_KEY, torch.ones_like(may_look))
        if step + 1 < len(starts):
            may_look = may_look | starts[step + 1].unsqueeze(-1)
            may_look = may_look | td.get(IS_WAITING_KEY)  # shown what it has seen
        handed_out.append(td.copy())
        copies.append(td.clone())
    for step, (td, copy) in enumerate(zip(handed_out, copies, strict=True)):
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
    line: Sequence[ServedStep],
    may_look: Tensor,
) -> None:
    due = [row for row, served in enumerate(line) if served.is_asked]
    seen = torch.cat(actor.asked).tolist() if actor.asked else []
    asked = sorted(round(value - _observe(step, 0)) for value in seen)
    if asked != due:
        raise AssertionError(
            f"{name}: expected the actor to be asked about rows {due} at step {step}, "
            f"got {asked}."
        )
    unseen = [row for row in asked if not may_look[row]]
    if unseen:
        raise AssertionError(
            f"{name}: expected 'observation_needed' True at step {step - 1} for rows "
            f"{unseen}, about which the actor is asked next, got False: the "
            "observation may not have been drawn."
        )
    if td.get(ACTION_CHUNK_KEY, None) is not None:
        raise AssertionError(
            f"{name}: expected no {ACTION_CHUNK_KEY!r} in what it writes: a rollout "
            "would hold it at every step."
        )
    moves = torch.tensor([not served.is_waiting for served in line])
    plans = [_observe(served.planned_at, row) for row, served in enumerate(line)]
    tokens = torch.tensor(plans, dtype=torch.float64)
    actions = torch.tensor([[served.action] for served in line], dtype=torch.float64)
    for key, value, rows in (
        (ACTION_KEY, actions, moves),
        (ACTION_TOKENS_KEY, tokens.long().unsqueeze(-1), moves),
        (LOG_PROBS_KEY, -tokens, moves),
        (IS_DECISION_KEY, torch.tensor([[served.begins] for served in line]), None),
        (IS_WAITING_KEY, ~moves.unsqueeze(-1), None),
    ):
        got = td.get(key, None)
        if got is None or not _same(got, value, rows):
            shown = None if got is None else got.flatten().tolist()
            raise AssertionError(
                f"{name}: expected {value.flatten().tolist()} at {key!r} of step "
                f"{step}, got {shown}."
            )


def _same(got: Tensor, value: Tensor, rows: Tensor | None) -> bool:
    if got.shape != value.shape or got.dtype != value.dtype:
        return False
    if rows is not None:
        got, value = got[rows], value[rows]
    # Of a mean of float64 numbers up to 1e4 the last bits depend on the order.
    return torch.allclose(got.double(), value.double(), rtol=0, atol=1e-9)
