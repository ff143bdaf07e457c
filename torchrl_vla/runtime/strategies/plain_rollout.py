"""Strategy that runs a policy and keeps nothing."""

from __future__ import annotations

from torchrl_vla.runtime.strategies.robot_run import RobotRun, RolloutStrategy


class PlainRollout(RolloutStrategy):
    """Run episodes and keep nothing.

    Args:
        episodes: how many; None = until the loop ends.

    Examples:
        >>> PlainRollout(episodes=3).finished
        0
    """

    def __init__(self, episodes: int | None = None) -> None:
        self.episodes, self.finished = episodes, 0
        self.successes = 0

    def run(self, run: RobotRun) -> None:
        """Run the episodes."""
        while not run.should_end and self.finished != self.episodes:
            for step, _ in run.episode():
                if step["next", "done"].any():
                    self.finished += 1
                    self.successes += int(step["next", "success"].item())
