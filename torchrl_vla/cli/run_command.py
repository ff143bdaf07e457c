"""``torchrl-vla run``: a policy on a robot, behind the safety gate."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from torchrl_vla.cli import robots
from torchrl_vla.cli.robot_options import RobotOptions, RobotPolicyOptions, open_keys


@dataclass(frozen=True)
class Run:
    """Run a policy on a robot, behind the safety gate, and keep nothing.

    Keys: n ends the episode as a success, f as a failure, q the run; the space bar
    stops the robot.
    """

    policy: OmitArgPrefixes[RobotPolicyOptions] = field(
        default_factory=RobotPolicyOptions
    )
    robot: OmitArgPrefixes[RobotOptions] = field(default_factory=RobotOptions)
    episodes: int | None = None
    """Number of episodes. Left out, until the duration, Ctrl-C or a key."""

    def run(self) -> None:
        """Run, and print the report."""
        base = self.robot.make_env()
        env, policy = self.policy.open(base)
        run = robots.RobotRun(env, policy, open_keys())
        self.robot.run(run, robots.PlainRollout(self.episodes))
