"""Options that the commands of a robot share, and what they open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from tyro.conf import OmitArgPrefixes, arg

from torchrl_vla.cli import robots
from torchrl_vla.cli.options import OptionError, read_json
from torchrl_vla.recipes.executor_options import DEFAULT_EXECUTOR, ExecutorOptions
from torchrl_vla.runtime.gate_options import GateOptions

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

Made = TypeVar("Made")


@dataclass(frozen=True)
class RobotOptions:
    """Options of a robot and its run.

    Args:
        name: Robot: fake, so101, or a function of your own as module:function, which
            returns a torchrl_vla.runtime.Robot.
        robot_options: Options of the robot's maker, as JSON, e.g.
            '{"image_size": 96}'.
        task: Instruction, which the policy reads and a recording keeps.
        duration_s: Length of the run in seconds. Left out, until Ctrl-C or a key.
        gate: What the safety gate lets pass. Limits come from the robot.
        json: File that receives rate, latencies and interventions.
        html: File that receives the same as a page.
        view: Show images, joint curves and latencies in the Rerun viewer (extra
            `rerun`).
        view_file: File (.rrd) that receives them, for the viewer to open later.
    """

    name: Annotated[str, arg(name="robot")] = "fake"
    robot_options: str = "{}"
    task: str = "move"
    duration_s: float | None = None
    gate: GateOptions = field(default_factory=GateOptions)
    json: Path | None = None
    html: Path | None = None
    view: bool = False
    view_file: Path | None = None

    def make_env(self) -> robots.RobotEnv:
        """Make the environment of the robot; nothing is connected yet."""
        options = read_json("--robot-options", self.robot_options)
        robot = _made("--robot", lambda: robots.make_robot(self.name, **options))
        gate = robots.SafetyGate(robot, self.gate)
        rate_hz = float(gate.metadata.control_frequency_hz or 1.0)
        loop = robots.ControlLoop(rate_hz, duration_s=self.duration_s, clock=gate.clock)
        return robots.RobotEnv(gate, task=self.task, loop=loop)

    def run(
        self,
        run: robots.RobotRun,
        strategy: robots.RolloutStrategy,
        teleoperator: robots.Teleoperator | None = None,
        recorder: robots.BackgroundRecorder | None = None,
    ) -> None:
        """Run, print the report, and write it, also after an error."""
        error: BaseException | None = None
        view = self._open_view(run)
        try:
            with nullcontext() if teleoperator is None else teleoperator:
                run.warm_up()
                robots.run_strategy(strategy, run)
        except BaseException as raised:
            error = raised
            raise
        finally:
            run.keys.close()
            if view is not None:
                view.close()
            report = robots.RunReport(run, recorder, error)
            print(report)
            if self.json is not None:
                report.write_json(self.json)
            if self.html is not None:
                report.write_html(self.html)

    def _open_view(self, run: robots.RobotRun) -> robots.LiveView | None:
        if not self.view and self.view_file is None:
            return None
        view = robots.LiveView(run.robot_env, self.view_file)
        run.listeners.append(view)
        return view


@dataclass(frozen=True)
class TeleoperatorOptions:
    """Options of a teleoperator.

    Args:
        name: Teleoperator: fake (it waves), or a function of your own as
            module:function, which returns a torchrl_vla.runtime.Teleoperator.
        teleoperator_options: Options of its maker, as JSON.
        handover_s: Seconds in which the robot comes to it when it takes over.
    """

    name: Annotated[str | None, arg(name="teleoperator")] = None
    teleoperator_options: str = "{}"
    handover_s: float = 1.0

    def make(self, env: robots.RobotEnv) -> robots.Teleoperator:
        """Make the teleoperator of a robot."""
        if self.name is None:
            raise OptionError(
                "--teleoperator: expected a teleoperator, got none. Name one: fake or "
                "module:function."
            )
        name = self.name
        options = read_json("--teleoperator-options", self.teleoperator_options)
        return _made(
            "--teleoperator",
            lambda: robots.make_teleoperator(name, env.metadata, **options),
        )

    def make_policy(
        self, teleoperator: robots.Teleoperator, env: robots.RobotEnv
    ) -> robots.TeleoperatorPolicy:
        """Make the policy that acts as the person commands."""
        return robots.TeleoperatorPolicy(
            teleoperator, handover_s=self.handover_s, rate_hz=env.loop.rate_hz
        )


@dataclass(frozen=True)
class RobotPolicyOptions:
    """Options of a policy that acts on a robot.

    Args:
        policy: Policy: a folder that `train` or `finetune` wrote, a LeRobot checkpoint,
            a function of your own as module:function, or that of a server,
            ws://host:port. One of another robot, rate or convention is refused.
        replan_interval: Actions of a chunk to execute before the policy is called
            again. Left out, the whole chunk, or as many as LeRobot executes of it.
        rename_map: For a LeRobot checkpoint: the robot's cameras to the policy's, as
            JSON.
        device: Device of the policy, e.g. `cuda`.
        execution: How its chunks are executed.
        deadline: Part of a period that a step waits for the policy; then the robot
            holds its last action.
    """

    policy: str | None = None
    replan_interval: int | None = None
    rename_map: str = "{}"
    device: str | None = None
    execution: OmitArgPrefixes[ExecutorOptions] = DEFAULT_EXECUTOR
    deadline: float = 0.7

    def open(self, env: robots.RobotEnv) -> tuple[robots.EnvBase, TensorDictModuleBase]:
        """Return the environment with the policy's transforms, and the policy."""
        if self.policy is None:
            raise OptionError(
                "--policy: expected a policy, got none. Name a checkpoint or a "
                "module:function."
            )
        renamed = read_json("--rename-map", self.rename_map)
        executor = robots.load_any_executor(
            self.policy,
            env,
            replan_interval=self.replan_interval,
            device=self.device,
            execution=self.execution,
            **({"rename_map": renamed} if renamed else {}),
        )
        policy = robots.DeadlinePolicy(
            executor, deadline_s=self.deadline / env.loop.rate_hz
        )
        return robots.prepare_environment(env, executor), policy


def open_keys() -> robots.KeyEvents:
    """Return the keys of the terminal, or say that there are none."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        keys = robots.make_keys()
    for warning in told:
        print(warning.message)
    return keys


def _made(option: str, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from error
