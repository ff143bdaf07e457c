"""``torchrl-vla replay``: the actions of a recorded episode on a robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from torchrl_vla.cli import robots
from torchrl_vla.cli.options import OptionError
from torchrl_vla.cli.robot_options import RobotOptions, open_keys


@dataclass(frozen=True)
class Replay:
    """Play the actions of a recorded episode on a robot, behind the safety gate.

    A dataset of another robot, rate or convention is refused.
    """

    folder: Path
    """Folder of a LeRobot dataset, such as `record` writes."""
    episode: int = 0
    """Number of the episode, from 0."""
    approach_s: float = 2.0
    """Seconds in which the robot comes from where it is to the first action."""
    robot: OmitArgPrefixes[RobotOptions] = field(default_factory=RobotOptions)

    def run(self) -> None:
        """Run, and print the report."""
        dataset = robots.LeRobotDemonstrations.from_folder(self.folder)
        if not 0 <= self.episode < dataset.num_episodes:
            raise OptionError(
                f"--episode: expected a number below {dataset.num_episodes}, those of "
                f"{str(self.folder)!r}, got {self.episode}."
            )
        env = self.robot.make_env()
        sides = ("the dataset", "the robot")
        robots.check_robot_metadata(
            "replay", dataset.metadata, env.metadata, sides=sides
        )
        frames = dataset.frames[dataset.frames["episode_index"] == self.episode]
        policy = robots.RecordedActions(
            frames["action"], env.loop, approach_s=self.approach_s
        )
        run = robots.RobotRun(env, policy, open_keys())
        self.robot.run(run, robots.PlainRollout())
