"""Environment over a robot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.runtime.control_loop import ControlLoop
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.safety_gate import ActionOrigin, SafetyGate
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_SEED_KEY,
    INSTRUCTION_KEY,
    IS_DECISION_KEY,
    OBSERVATION_AGE_KEY,
    OBSERVED_AT_KEY,
    PREVIOUS_ACTION_KEY,
    SESSION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    ExecutionError,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    declared_observations,
    position_of,
    read_action,
)

#: bool ``[*B, 1]``, True = the policy gave no action in time: the robot holds.
IS_HELD_KEY: NestedKey = "is_held"
#: float64 ``[*B, 1]``, ``observed_at_s`` of the observation that the action answers;
#: absent = the present one.
ANSWERED_AT_KEY: NestedKey = "answered_at_s"


class RobotEnv(EnvBase):
    """Run a robot as a TorchRL environment, at its rate and behind a safety gate.

    Collectors, executors, evaluation and writers take it as any environment with one
    env index. A step sends the action through the :class:`SafetyGate`, waits for the
    next tick of the :class:`ControlLoop` and observes. ``reset`` connects where there
    is no connection and begins a session: an action that was made for an earlier
    episode does not pass. ``close`` disconnects.

    Note:
        An action has to come in a tensordict with ``session_id`` and ``observed_at_s``
        of the observation that it answers, as every loop of TorchRL's hands it on. What
        reached the robot is in ``next.previous_action``: where the gate intervened that
        is another one than the policy's ``action``, and it is what a recording of the
        robot should hold.

    **Reads** ``action`` ``[1, A]``, any float; ``session_id``, ``observed_at_s``; where
    present ``is_decision`` and ``observation_age``, which tell the age of a chunk,
    ``is_held`` and ``answered_at_s``.

    **Writes** ``("observation", "state")`` float32 ``[1, S]``; ``("observation",
    "image")`` uint8 ``[1, C, h, w]`` or one entry per camera below it;
    ``language_instruction`` int64 ids ``[1]`` of ``env.instructions``;
    ``previous_action`` float32 ``[1, A]``, what was sent last, the measured position at
    a reset where the state holds it, else 0; ``observed_at_s`` float64 ``[1, 1]``;
    ``session_id`` and ``episode_seed`` int64; ``success`` bool ``[1, 1]``; ``reward``
    float32 ``[1, 1]``, 1 on success; ``done``, ``terminated``, ``truncated``.

    Args:
        robot: or a gate that holds it.

    Keyword Args:
        task: the instruction.
        loop: of the rate; None = the robot's declared one.
        max_steps: time limit; an episode is ``truncated`` there. None = none.
        success: takes an observation ``[]`` and returns whether the task is done; None
            = only :meth:`finish` says it, as a person does.
        on_reset: takes an episode's seed, and brings robot and scene to its beginning;
            None = they are as they are.
        seed: seed of the episode seeds.

    Raises:
        MetadataError: the robot does not declare what the gate checks.
        ValueError: ``max_steps`` is not positive, or gate and loop have two clocks.
        MissingKeyError: the tensordict does not say what the action answers.
        ExecutionError: a step before the first reset.
        RobotStoppedError: see :class:`SafetyGate`, as for its other errors.

    Examples:
        >>> from torchrl_vla.runtime import GateOptions
        >>> from torchrl_vla.testing import FakeClock, FakeRobot
        >>> clock = FakeClock()
        >>> robot = FakeRobot(clock=clock)
        >>> gate = SafetyGate(robot, clock=clock)
        >>> env = RobotEnv(gate, task="wave", max_steps=30)
        >>> env.rollout(100)["next", "observation", "state"].shape
        torch.Size([1, 30, 2])
        >>> round(clock.now_s(), 3), len(robot.sent)
        (1.0, 30)
        >>> env.close()
        >>> robot.events
        ['connect', 'disconnect']
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        robot: Robot | SafetyGate,
        *,
        task: str,
        loop: ControlLoop | None = None,
        max_steps: int | None = None,
        success: Callable[[TensorDict], bool] | None = None,
        on_reset: Callable[[int], None] | None = None,
        seed: int | None = None,
    ) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"RobotEnv: expected max_steps >= 1, got {max_steps}.")
        super().__init__(batch_size=torch.Size([1]))
        clock = None if loop is None else loop.clock
        match robot:
            case SafetyGate():
                self.gate = robot
            case _:
                self.gate = SafetyGate(robot, clock=clock)
        self.metadata = self.gate.metadata
        rate_hz = float(self.metadata.control_frequency_hz or 0)
        self.loop = (
            ControlLoop(rate_hz, clock=self.gate.clock) if loop is None else loop
        )
        if self.loop.clock is not self.gate.clock:
            raise ValueError(
                "RobotEnv: expected one clock of loop and gate, got two. Give both the "
                "same clock=."
            )
        self.instructions = InstructionTable([task])
        self.max_steps = max_steps
        self._success_of, self._on_reset = success, on_reset
        self._outcome: bool | None = None
        self._elapsed = -1  # -1 = it was never reset
        self._planned_s: float | None = None
        self._taken_s: list[float] = []  # of the episode's observations
        self._make_specs(self.metadata)
        self._now: dict[Any, Any] = {}
        self._generator = torch.Generator()
        self._set_seed(seed)

    def finish(self, success: bool) -> None:
        """End the episode at the next step, as a person judges it; from any thread.

        Args:
            success: True = the task is done.
        """
        self._outcome = success

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Disconnect the robot; it stays with its last action."""
        try:
            super().close(raise_if_closed=raise_if_closed)
        finally:
            self.gate.disconnect()

    def _make_specs(self, metadata: RobotDatasetMetadata) -> None:
        batch = self.batch_size
        flag = Binary(shape=(*batch, 1), dtype=torch.bool)
        number = Unbounded((*batch, 1), dtype=torch.int64)
        spec = Composite(shape=batch)
        for key, (dtype, shape) in declared_observations(metadata).items():
            shape = (*batch, *shape)
            spec[key] = (
                Bounded(0, 255, shape=shape, dtype=dtype)
                if dtype == torch.uint8
                else Unbounded(shape, dtype=dtype)
            )
        spec[INSTRUCTION_KEY] = Unbounded(batch, dtype=torch.int64)
        spec[PREVIOUS_ACTION_KEY] = Unbounded((*batch, metadata.action_dim))
        spec[SESSION_KEY] = number
        spec[EPISODE_SEED_KEY] = Unbounded(batch, dtype=torch.int64)
        spec[SUCCESS_KEY] = flag
        self.observation_spec = spec
        self.action_spec: TensorSpec = metadata.make_action_spec(batch)
        self.reward_spec = Unbounded((*batch, 1))
        self.full_done_spec = Composite(
            done=flag.clone(),
            terminated=flag.clone(),
            truncated=flag.clone(),
            shape=batch,
        )

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        episode_seeds: Tensor | None = None,
        **kwargs: Any,
    ) -> TensorDict:
        if episode_seeds is None:
            episode_seeds = torch.randint(0, 2**31, (1,), generator=self._generator)
        self._seed_now = torch.as_tensor(episode_seeds).expand(self.batch_size).cpu()
        self.gate.connect()
        if self._on_reset is not None:
            self._on_reset(int(self._seed_now[0]))
        self._outcome, self._elapsed, self._planned_s = None, 0, None
        self._taken_s = []
        self.gate.begin_session()
        self.loop.restart()
        self.loop.wait()
        return self._observe(None)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        if self._elapsed < 0:
            raise ExecutionError(
                "RobotEnv: expected an episode to step, got a step before the first "
                "reset. Call td = env.reset() and step from what it returns, or use "
                "env.rollout(...). No action was sent."
            )
        if self._is_held(tensordict):
            sent = self.gate.hold("late policy")
        else:
            sent = self.gate.send(self._action(tensordict), self._origin(tensordict))
        self.loop.wait()
        self._elapsed += 1
        out = self._observe(sent)
        return out.set("reward", out[SUCCESS_KEY].to(torch.float32))

    def _action(self, tensordict: TensorDictBase) -> Tensor:
        """Return the action ``[A]``; the gate looks at its numbers."""
        action = tensordict.get(ACTION_KEY, None)
        if action is None or action.shape[:-1] != self.batch_size:
            width = int(self.metadata.action_dim or 0)
            action = read_action("RobotEnv", tensordict, self.batch_size, width)
        return action[0]

    def _is_held(self, tensordict: TensorDictBase) -> bool:
        held = tensordict.get(IS_HELD_KEY, None)
        return held is not None and bool(held.any())

    def _origin(self, tensordict: TensorDictBase) -> ActionOrigin:
        session = tensordict.get(SESSION_KEY, None)
        taken = tensordict.get(ANSWERED_AT_KEY, None)
        if taken is None:
            taken = tensordict.get(OBSERVED_AT_KEY, None)
        if session is None or taken is None:
            raise MissingKeyError(
                f"RobotEnv: expected {SESSION_KEY!r} and {OBSERVED_AT_KEY!r} of the "
                "observation that the action answers, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Write the action "
                "into the tensordict that reset() or step_mdp() returned, and drop "
                "none of its entries. No action was sent."
            )
        taken_s = float(taken.item())
        return ActionOrigin(
            int(session.item()), taken_s, self._plan(tensordict, taken_s)
        )

    def _plan(self, tensordict: TensorDictBase, taken_s: float) -> float | None:
        """Return when the chunk in execution was planned; None = with the action."""
        decision = tensordict.get(IS_DECISION_KEY, None)
        if decision is None:
            return None
        if bool(decision.any()) or self._planned_s is None:
            age = tensordict.get(OBSERVATION_AGE_KEY, None)
            steps = 0 if age is None else int(age.max())
            known = [s for s in self._taken_s if s <= taken_s]
            self._planned_s = (
                known[max(0, len(known) - 1 - steps)] if known else taken_s
            )
        return self._planned_s

    def _observe(self, sent: Tensor | None) -> TensorDict:
        observed = self.gate.observe()
        self._taken_s.append(observed[OBSERVED_AT_KEY].item())
        del self._taken_s[:-1024]
        if sent is None:
            sent = self.gate.last_sent
        if sent is None:
            sent = position_of(self.metadata, observed[STATE_KEY])
        if sent is None:
            sent = torch.zeros(int(self.metadata.action_dim or 0))
        is_done = self._succeeds(observed)
        out = observed.unsqueeze(0)
        out.set(PREVIOUS_ACTION_KEY, sent.clone().unsqueeze(0))
        out.set(INSTRUCTION_KEY, self.instructions.ids.clone())
        out.set(EPISODE_SEED_KEY, self._seed_now.clone())
        late = self.max_steps is not None and self._elapsed >= self.max_steps
        ended = is_done or self._outcome is False
        for key, value in (
            (SUCCESS_KEY, is_done),
            ("terminated", ended),
            ("truncated", late and not ended),
            ("done", ended or late),
        ):
            out.set(key, torch.tensor([[value]]))
        return out

    def _succeeds(self, observed: TensorDict) -> bool:
        if self._outcome is not None:
            return self._outcome
        return self._success_of is not None and bool(self._success_of(observed))

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
