"""Interpolating executor: several control steps per action of another executor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tensordict import TensorDictBase, unravel_key
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.execution.action_reference import MAKE_ABSOLUTE, check_reference
from torchrl_vla.execution.chunk_cache import Outputs
from torchrl_vla.execution.executor import Executor, flag, transforms_of
from torchrl_vla.schema import (
    IS_WAITING_KEY,
    OBSERVATION_AGE_KEY,
    OBSERVATION_NEEDED_KEY,
    RobotDatasetMetadata,
    check_positive_int,
    metadata_of,
)


class ActionInterpolation(Executor):
    r"""Reach each action of an executor in ``k`` control steps, on a straight line.

    A policy that was trained at 10 Hz jerks a robot that is controlled at 50 Hz. The
    executor inside is called at every ``k``-th step (tick) only, and the robot moves
    there from the action before:

    .. math:: a_{t+j} = a^- + \tfrac{j + 1}{k} (a - a^-), \quad j = 0 .. k - 1

    The first action of an episode has none before it and is held.

    Note:
        Environments share their ticks, so one that begins an episode between two
        actions of the others waits up to ``k - 1`` steps for them: with more than one
        environment :class:`SkipWaiting` is needed. Angles that wrap around, axis-angles
        and quaternions are interpolated as plain numbers; keep them from jumping.

    **Reads** what the executor reads, on every ``k``-th step.

    **Writes** what the executor writes, on every step, ``action`` interpolated:
    ``is_decision`` on the first tick of the action that a new chunk begins with,
    ``observation_needed`` False before an action's last tick, ``observation_age``
    (where it is written) in ticks; and ``is_waiting`` bool ``[*B, 1]``.

    Args:
        executor: whose actions are reached; called once in ``ticks`` steps. An
            :class:`ActionGuard` around an executor is one.
        ticks: ``k``, control steps for each action.

    Keyword Args:
        action_reference: what the actions are measured from, of ``REFERENCES``; only
            ``"absolute"`` can be interpolated. A delta would be executed ``k`` times,
            and a chunk that is relative to a state has none before it.

    Raises:
        ValueError: ``ticks < 1``, or the reference is not ``"absolute"``.
        TypeError: ``executor`` is not an executor.
        MissingKeyError: more than one environment, and no :class:`SkipWaiting`.
        ExecutionError: as :class:`Executor`.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.execution import MultiStepActorWrapper
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-1) + torch.tensor([[0.0], [1.0]]),
        ...     in_keys=["state"],
        ...     out_keys=["action_chunk"],
        ... )
        >>> executor = ActionInterpolation(
        ...     MultiStepActorWrapper(policy), 2, action_reference="absolute"
        ... )
        >>> step = TensorDict(
        ...     {"state": torch.zeros(1, 1), "is_init": torch.ones(1, 1).bool()}, [1]
        ... )
        >>> first = executor(step.clone())["action"].item()
        >>> step["is_init"] = torch.zeros(1, 1).bool()
        >>> first, [executor(step.clone())["action"].item() for _ in range(3)]
        (0.0, [0.0, 0.5, 1.0])
    """

    def __init__(
        self, executor: Executor, ticks: int, *, action_reference: str
    ) -> None:
        check_positive_int("ActionInterpolation", "ticks", ticks)
        check_reference("ActionInterpolation", action_reference)
        if action_reference != "absolute":
            raise ValueError(
                "ActionInterpolation: expected an action_reference of 'absolute', got "
                f"{action_reference!r}: on the way to it a delta would be executed at "
                f"every tick. {MAKE_ABSOLUTE}"
            )
        if OBSERVATION_NEEDED_KEY not in map(unravel_key, executor.out_keys):
            raise TypeError(
                "ActionInterpolation: expected an Executor, got "
                f"{type(executor).__name__}. Wrap a policy of chunks in "
                "MultiStepActorWrapper(policy) first."
            )
        super().__init__(executor.keys)
        self.executor = executor
        self.ticks = ticks
        self.in_keys = list(executor.in_keys)
        own = [self.keys.action, self.keys.is_decision, self.keys.decision_index]
        own += [OBSERVATION_NEEDED_KEY, IS_WAITING_KEY]
        self._output_keys = [
            key for key in map(unravel_key, executor.out_keys) if key not in own
        ]
        self.out_keys = [*own, *self._output_keys]

    @property
    def training_metadata(self) -> RobotDatasetMetadata | None:
        """Metadata of the policy's training data, at the rate of the ticks."""
        trained = metadata_of(self.executor)
        if trained is None or trained.control_frequency_hz is None:
            return trained
        rate_hz = trained.control_frequency_hz * self.ticks
        return replace(trained, control_frequency_hz=rate_hz)

    @property
    def makes_wait(self) -> bool:
        """True = environments may wait, which takes :class:`SkipWaiting`."""
        return self.ticks > 1 or self.executor.makes_wait

    def _policy_transforms(self) -> list[Transform]:
        return transforms_of(self.executor)

    def reset(self) -> None:
        """Drop the last action, and the executor's plans."""
        super().reset()
        self.executor.reset()

    def _make_stream(self, name: str) -> Executor:
        made = super()._make_stream(name)
        inside = self.executor.for_stream(name)
        made._modules = {**self._modules, "executor": inside}
        return made

    def _serve(self, tensordict: TensorDictBase, begins: Tensor) -> TensorDictBase:
        if self._state is None or self._state.tick == self.ticks:
            self._state = self._next_action(tensordict, begins)
        elif begins.any():
            self._state.waiting = self._state.waiting | begins
            if self._state.waiting.all():
                self._state = self._next_action(tensordict, begins)
        return self._write_tick(tensordict, self._state)

    def _next_action(self, tensordict: TensorDictBase, begins: Tensor) -> _Period:
        before: _Period | None = self._state
        fresh = begins if before is None else begins | before.waiting
        is_init = tensordict.get(self.keys.is_init)
        # An environment that has waited begins now, whatever its own mark says.
        inputs = tensordict.copy().set(self.keys.is_init, fresh.reshape(is_init.shape))
        if before is not None:  # checked on the way in: the steps are of one stream
            inputs.set(self.keys.decision_index, before.serials)
        answer = self.executor(inputs)
        target = answer.get(self.keys.action)
        outputs = {key: answer.get(key) for key in self._output_keys}
        if OBSERVATION_AGE_KEY in outputs:
            outputs[OBSERVATION_AGE_KEY] = outputs[OBSERVATION_AGE_KEY] * self.ticks
        waiting = torch.zeros_like(fresh)
        if self.executor.makes_wait:
            waiting = answer.get(IS_WAITING_KEY).reshape(fresh.shape)
        origin, last = target, target
        if before is not None:
            origin = torch.where(fresh.unsqueeze(-1), target, before.target)
            last = before.last
        return _Period(
            origin=origin,
            target=target,
            serials=answer.get(self.keys.decision_index),
            decided=answer.get(self.keys.is_decision).reshape(fresh.shape),
            observation_needed=answer.get(OBSERVATION_NEEDED_KEY).reshape(fresh.shape),
            waiting=waiting,
            outputs=outputs,
            last=last,
        )

    def _write_tick(
        self, tensordict: TensorDictBase, period: _Period
    ) -> TensorDictBase:
        decided = period.decided if period.tick == 0 else None
        period.tick += 1
        action = torch.lerp(period.origin, period.target, period.tick / self.ticks)
        action = torch.where(period.waiting.unsqueeze(-1), period.last, action)
        period.last = action
        tensordict.set(IS_WAITING_KEY, flag(period.waiting, period.serials))
        observation_needed = period.observation_needed
        if period.tick < self.ticks:
            observation_needed = torch.zeros_like(observation_needed)
        return self._write(
            tensordict, action, decided, period.outputs, observation_needed
        )

    def extra_repr(self) -> str:
        """Show how many steps an action takes."""
        return f"ticks={self.ticks}"


@dataclass
class _Period:
    """The ticks of one action.

    Args:
        origin: the action before, ``[*B, A]``.
        target: the action to be reached.
        serials: number of the decision, int64 ``[*B, 1]``.
        decided: True = a new chunk begins with this action, bool ``[*B]``.
        observation_needed: of the executor, bool ``[*B]``.
        waiting: True = the environment waits for the next action, bool ``[*B]``.
        outputs: the executor's other outputs.
        last: the action that was written last, ``[*B, A]``.
        tick: how many were written.
    """

    origin: Tensor
    target: Tensor
    serials: Tensor
    decided: Tensor
    observation_needed: Tensor
    waiting: Tensor
    outputs: Outputs
    last: Tensor
    tick: int = 0

    @property
    def batch_size(self) -> torch.Size:
        return self.waiting.shape
