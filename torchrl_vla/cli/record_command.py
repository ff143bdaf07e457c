"""``torchrl-vla record``: a LeRobot dataset of a robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from torchrl_vla.cli import robots
from torchrl_vla.cli.options import OptionError
from torchrl_vla.cli.robot_options import (
    RobotOptions,
    RobotPolicyOptions,
    TeleoperatorOptions,
    open_keys,
)

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase


@dataclass(frozen=True)
class Record:
    """Record a LeRobot dataset of a robot that a person or a policy moves.

    With both, the person corrects the policy (DAgger). Images are encoded beside the
    control loop, which never waits for them: frames that are too many are dropped and
    counted. Finished episodes survive a crash; --resume goes on.

    Keys: n ends the episode as a success, f as a failure, r records it again, s saves
    the past (highlight), q ends the run; the space bar stops the robot.
    """

    folder: Path
    """Folder that receives the dataset. It must not hold one yet."""
    teleoperator: OmitArgPrefixes[TeleoperatorOptions] = field(
        default_factory=TeleoperatorOptions
    )
    policy: OmitArgPrefixes[RobotPolicyOptions] = field(
        default_factory=RobotPolicyOptions
    )
    robot: OmitArgPrefixes[RobotOptions] = field(default_factory=RobotOptions)
    strategy: Literal["episodes", "continuous", "highlight", "corrections"] = "episodes"
    """What is kept: a number of episodes; everything, cut into episodes; the last
    seconds before a key, and what follows; or corrections of a policy alone."""
    episodes: int = 50
    """Number of episodes of `episodes`."""
    episode_s: float = 60.0
    """Longest episode of `episodes`, and length of those of `continuous`."""
    reset_s: float = 10.0
    """Pause after each episode of `episodes`, for the scene to be reset."""
    past_s: float = 30.0
    """Seconds of the past that `highlight` keeps."""
    past_mb: float = 2048.0
    """Memory in MB that `highlight` keeps at most."""
    images: Literal["video", "png"] = "video"
    """How images are stored; videos need 32 pixels and more."""
    queue: int = 256
    """Frames that may wait for the encoder; those beyond are dropped and counted."""
    resume: bool = False
    """Go on with a recording that was not finished, with its settings."""

    def run(self) -> None:
        """Record, and print the report."""
        base = self.robot.make_env()
        person = (
            None if self.teleoperator.name is None else self.teleoperator.make(base)
        )
        env, policy = self._policy(base, person)
        run = robots.RobotRun(env, policy, open_keys())
        recorder = self._recorder(base, person is not None, self.policy.policy)
        self.robot.run(run, self._strategy(recorder), person, recorder)
        print(f"{self.folder}: {recorder.num_episodes} episodes")

    def _policy(
        self, env: robots.RobotEnv, person: robots.Teleoperator | None
    ) -> tuple[robots.EnvBase, TensorDictModuleBase]:
        if person is None and self.policy.policy is None:
            raise OptionError(
                "record: expected --teleoperator or --policy, or both for corrections, "
                "got neither. Nothing would move the robot."
            )
        if self.strategy == "corrections" and None in (person, self.policy.policy):
            raise OptionError(
                "record: expected --teleoperator and --policy with --strategy "
                "corrections, got one of them. A person corrects a policy."
            )
        if person is None:
            return self.policy.open(env)
        by_hand = self.teleoperator.make_policy(person, env)
        if self.policy.policy is None:
            return env, by_hand
        prepared, policy = self.policy.open(env)
        return prepared, robots.CorrectionPolicy(policy, by_hand)

    def _recorder(
        self, env: robots.RobotEnv, by_hand: bool, policy: str | None
    ) -> robots.BackgroundRecorder:
        if self.resume:
            writer = robots.LeRobotWriter.resume(
                self.folder, instructions=env.instructions
            )
        else:
            flags = {"is_intervention": by_hand, "is_held": policy is not None}
            writer = robots.LeRobotWriter(
                self.folder,
                metadata=env.metadata,
                instructions=env.instructions,
                images=self.images,
                extra_keys=[key for key in robots.EXTRA_KEYS if flags[str(key)]],
            )
        return robots.BackgroundRecorder(writer, capacity=self.queue)

    def _strategy(self, recorder: robots.BackgroundRecorder) -> robots.Recording:
        match self.strategy:
            case "episodes":
                return robots.EpisodicRecording(
                    recorder,
                    self.episodes,
                    episode_s=self.episode_s,
                    reset_s=self.reset_s,
                    on_saved=lambda count: print(f"episode {count} is saved"),
                )
            case "continuous":
                return robots.ContinuousRecording(recorder, self.episode_s)
            case "highlight":
                return robots.HighlightRecording(
                    recorder, seconds=self.past_s, megabytes=self.past_mb
                )
        return robots.CorrectionRecording(recorder, corrections_only=True)
