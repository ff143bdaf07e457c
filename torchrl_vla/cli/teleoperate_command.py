"""``torchrl-vla teleoperate``: a person on a robot, behind the safety gate."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from torchrl_vla.cli import robots
from torchrl_vla.cli.robot_options import RobotOptions, TeleoperatorOptions, open_keys


@dataclass(frozen=True)
class Teleoperate:
    """Move a robot with a teleoperator, behind the safety gate, and keep nothing."""

    teleoperator: OmitArgPrefixes[TeleoperatorOptions] = field(
        default_factory=TeleoperatorOptions
    )
    robot: OmitArgPrefixes[RobotOptions] = field(default_factory=RobotOptions)

    def run(self) -> None:
        """Run, and print the report."""
        env = self.robot.make_env()
        person = self.teleoperator.make(env)
        policy = self.teleoperator.make_policy(person, env)
        run = robots.RobotRun(env, policy, open_keys())
        self.robot.run(run, robots.PlainRollout(), person)
