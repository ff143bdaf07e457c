"""Run of a policy on a robot: its parts, its steps, and its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.execution import InterventionPolicy
from torchrl_vla.rollout import evaluation_mode
from torchrl_vla.rollout.random_numbers import noise_seeds
from torchrl_vla.runtime.deadline_policy import DeadlinePolicy
from torchrl_vla.runtime.key_events import KeyEvent, KeyEvents, NoKeys
from torchrl_vla.runtime.loop_statistics import LoopStatistics
from torchrl_vla.runtime.robot_env import RobotEnv
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IS_INIT_KEY,
    NOISE_SEED_KEY,
    ArgumentTypeError,
    check_meeting,
)

#: Is called with each step of a run, ``[1]`` with its ``next``; it must not block.
StepListener = Callable[[TensorDictBase], None]


@dataclass
class RobotRun:
    """What acts on which robot, and who watches.

    Args:
        env: a :class:`RobotEnv`, with the transforms that the executor needs.
        policy: writes ``action``: an executor, a :class:`DeadlinePolicy` around one, a
            :class:`TeleoperatorPolicy` or a :class:`CorrectionPolicy`.
        keys: tell what a person asks for.
        listeners: are called with each step.
    """

    env: EnvBase
    policy: TensorDictModuleBase
    keys: KeyEvents = field(default_factory=NoKeys)
    listeners: list[StepListener] = field(default_factory=list)

    @property
    def robot_env(self) -> RobotEnv:
        """The environment below the transforms.

        Raises:
            ArgumentTypeError: it is no :class:`RobotEnv`.
        """
        env = self.env
        while isinstance(env, TransformedEnv):
            env = env.base_env
        match env:
            case RobotEnv():
                return env
        raise ArgumentTypeError(
            f"RobotRun: expected a RobotEnv at argument 'env', got "
            f"{type(env).__name__}. Nothing else has a safety gate."
        )

    @property
    def should_end(self) -> bool:
        """True = the loop is over."""
        return self.robot_env.loop.should_end

    def episode(self) -> Iterator[tuple[TensorDictBase, list[KeyEvent]]]:
        """Reset, and yield each step ``[1]`` with its events, until the episode ends.

        ``"success"`` and ``"failure"`` end it at the next step with that outcome;
        ``"quit"`` ends the loop; ``"stop"`` is the emergency stop.

        Raises:
            RobotStoppedError: at the step after ``"stop"``.
        """
        env, base = self.env, self.robot_env
        data, frame = env.reset(), 0
        while not self.should_end:
            data = env.step(self.policy(self._numbered(data, frame)))
            events = self.keys.poll()
            for event in events:
                if event in ("success", "failure"):
                    base.finish(event == "success")
                elif event == "quit":
                    base.loop.end("quit")
                elif event == "stop":
                    base.gate.stop("key")
            for listener in self.listeners:
                listener(data)
            yield data, events
            if data.get(("next", "done")).any():
                return
            data, frame = env.step_mdp(data), frame + 1

    def _numbered(self, data: TensorDictBase, frame: int) -> TensorDictBase:
        """Write whether an episode begins, and the seed of the policy's noise."""
        if IS_INIT_KEY not in self.env.observation_spec.keys(True, True):
            data.set(IS_INIT_KEY, torch.full((1, 1), frame == 0))
        seeds = noise_seeds(data.get(EPISODE_SEED_KEY), torch.tensor([frame]))
        return data.set(NOISE_SEED_KEY, seeds)

    def warm_up(self) -> None:
        """Let each policy with a deadline answer once, however long that takes.

        Connections, compilation and first allocations of memory are then over. The
        robot is connected and observed, and does not move. Call it before
        :func:`run_strategy`, whose watchdog does not wait for a slow first answer.
        """
        late = _policies_with_deadline(self.policy)
        if not late:
            return
        base = self.robot_env
        try:
            data = self._numbered(self.env.reset(), 0)
            for policy in late:
                policy.warm_up(data)
        except BaseException:
            base.gate.disconnect()
            raise
        base.loop.statistics = LoopStatistics(base.loop.rate_hz)

    def pause(self, seconds: float) -> None:
        """Wait at the loop's rate, as while a person resets the scene.

        ``"quit"`` ends the loop, ``"success"`` the pause; nothing is sent.
        """
        loop = self.robot_env.loop
        for _ in range(round(seconds * loop.rate_hz)):
            events = self.keys.poll()
            if "quit" in events:
                loop.end("quit")
            if self.should_end or "success" in events:
                return
            loop.wait()


class RolloutStrategy(ABC):
    """Do something with the steps of a run (abstract).

    :func:`run_strategy` calls :meth:`setup`, :meth:`run` and, whatever happened,
    :meth:`teardown`.
    """

    def setup(self, run: RobotRun) -> None:  # noqa: B027 (many need none)
        """Prepare, before the robot is connected."""

    @abstractmethod
    def run(self, run: RobotRun) -> None:
        """Run episodes until the loop should end."""

    def teardown(  # noqa: B027 (many need none)
        self, run: RobotRun, error: BaseException | None
    ) -> None:
        """Finish what was begun; ``error`` is what ended the run, None = nothing."""


def run_strategy(strategy: RolloutStrategy, run: RobotRun) -> None:
    """Run a strategy on a robot, and leave the robot in order whatever happens.

    The loop ends by its duration, a signal, a key, the strategy or an error. In each
    case the last thing that reaches the robot is a legal action, then it is
    disconnected, then the strategy finishes; an error is raised after that.

    Args:
        strategy: what to do.
        run: with which parts.

    Raises:
        IncompatibleMetadataError: the policy was trained for another robot, rate,
            convention or image size.
        RobotStoppedError: the gate stopped the robot.

    Examples:
        >>> from torchrl_vla.runtime import ControlLoop, PlainRollout, SafetyGate
        >>> from torchrl_vla.testing import FakeClock, FakeRobot, SlowPolicy
        >>> clock = FakeClock()
        >>> robot = FakeRobot(clock=clock)
        >>> loop = ControlLoop(30.0, duration_s=2.0, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave", loop=loop)
        >>> wave = SlowPolicy(lambda call: torch.full((2,), (call % 10) / 10))
        >>> run_strategy(PlainRollout(), RobotRun(env, wave))
        >>> len(robot.sent), robot.events
        (60, ['connect', 'disconnect'])
    """
    base, error = run.robot_env, None
    try:
        with base.loop, evaluation_mode(run.policy):
            for acting in _who_acts(run.policy):
                check_meeting("run_strategy", acting, run.env)
            strategy.setup(run)
            strategy.run(run)
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            base.gate.disconnect()
        finally:
            for policy in _policies_with_deadline(run.policy):
                policy.close()
            strategy.teardown(run, error)


def _who_acts(policy: TensorDictModuleBase) -> list[TensorDictModuleBase]:
    match policy:
        case InterventionPolicy():
            return [policy.policy, policy.expert]
    return [policy]


def _policies_with_deadline(policy: TensorDictModuleBase) -> list[DeadlinePolicy]:
    return [part for part in policy.modules() if isinstance(part, DeadlinePolicy)]
