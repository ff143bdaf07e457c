"""Strategies that record episodes: chosen ones, all, or the corrections."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase

from torchrl_vla.runtime.recording.background_recorder import BackgroundRecorder
from torchrl_vla.runtime.recording.recorded_frames import recorded_frame
from torchrl_vla.runtime.recording.ring_buffer import FrameRing
from torchrl_vla.runtime.strategies.robot_run import RobotRun, RolloutStrategy
from torchrl_vla.schema import IS_INTERVENTION_KEY


class Recording(RolloutStrategy):
    """Record into a dataset that is closed at the end (abstract).

    After an error, the dataset is left unfinished with all its finished episodes:
    ``LeRobotWriter.resume`` goes on.

    Args:
        recorder: of the dataset.
    """

    def __init__(self, recorder: BackgroundRecorder) -> None:
        self.recorder = recorder

    def add(self, step: TensorDictBase) -> None:
        """Record a step ``[1]`` of the robot."""
        self.recorder.add(recorded_frame(step))

    def teardown(self, run: RobotRun, error: BaseException | None) -> None:
        """Close the dataset, or leave it unfinished after an error."""
        if error is None:
            self.recorder.close()
        else:
            self.recorder.release()


class EpisodicRecording(Recording):
    """Record episodes, with a pause between two in which a person resets the scene.

    An episode ends where the environment says so, after ``episode_s``, or at
    ``"success"`` or ``"failure"``. ``"rerecord"`` drops it and records it again.
    Between two episodes the recorder is flushed: an episode that is counted in
    :attr:`finished` is on the disk. An episode that ``"quit"``, a signal or the loop's
    duration cuts off is kept.

    Args:
        recorder: of the dataset.
        episodes: how many to keep, with those of a recording that is resumed.

    Keyword Args:
        episode_s: the longest episode; None = no limit.
        reset_s: of the pause after each.
        on_saved: is called with the number of episodes on the disk.

    Examples:
        >>> import torch
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import *
        >>> clock, writer = FakeClock(), FakeEpisodeWriter()
        >>> robot = FakeRobot(clock=clock)
        >>> loop = ControlLoop(30.0, duration_s=9.0, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave", loop=loop)
        >>> run = RobotRun(env, SlowPolicy(lambda call: torch.zeros(2)))
        >>> recorder = BackgroundRecorder(writer)
        >>> run_strategy(EpisodicRecording(recorder, 2, episode_s=1.0), run)
        >>> [len(episode) for episode in writer.episodes]
        [30, 30]
    """

    def __init__(
        self,
        recorder: BackgroundRecorder,
        episodes: int,
        *,
        episode_s: float | None = None,
        reset_s: float = 0.0,
        on_saved: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(recorder)
        self.episodes, self.episode_s, self.reset_s = episodes, episode_s, reset_s
        self.on_saved = on_saved
        self.finished, self.rerecorded = recorder.num_episodes, 0

    def run(self, run: RobotRun) -> None:
        """Record the episodes."""
        rate_hz = run.robot_env.loop.rate_hz
        most = None if self.episode_s is None else round(self.episode_s * rate_hz)
        while not run.should_end and self.finished < self.episodes:
            again = False
            for count, (step, events) in enumerate(run.episode(), 1):
                self.add(step)
                again = again or "rerecord" in events
                if again or count == most:
                    break
            self._finish(again)
            if self.finished < self.episodes and not run.should_end:
                run.pause(self.reset_s)

    def _finish(self, again: bool) -> None:
        if again:
            self.rerecorded += 1
            self.recorder.discard_episode()
            return
        self.recorder.end_episode()
        self.recorder.flush()
        self.finished = self.recorder.num_episodes
        if self.on_saved is not None:
            self.on_saved(self.finished)


class ContinuousRecording(Recording):
    """Record everything, cut into episodes of a length (sentry).

    The policy is not reset at a cut.

    Args:
        recorder: of the dataset.
        episode_s: length of an episode.

    Keyword Args:
        every: ``on_saved`` is called after so many episodes.
        on_saved: takes the number of finished episodes, as to upload them. It is called
            in the loop's thread and must not block.

    Examples:
        >>> import torch
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import *
        >>> clock, writer = FakeClock(), FakeEpisodeWriter()
        >>> robot = FakeRobot(clock=clock)
        >>> loop = ControlLoop(30.0, duration_s=2.5, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave", loop=loop)
        >>> run = RobotRun(env, SlowPolicy(lambda call: torch.zeros(2)))
        >>> recorder = BackgroundRecorder(writer)
        >>> run_strategy(ContinuousRecording(recorder, episode_s=1.0), run)
        >>> [len(episode) for episode in writer.episodes]
        [30, 30, 15]
    """

    def __init__(
        self,
        recorder: BackgroundRecorder,
        episode_s: float,
        *,
        every: int = 5,
        on_saved: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(recorder)
        self.episode_s, self.every, self.on_saved = episode_s, every, on_saved
        self._told = 0

    def run(self, run: RobotRun) -> None:
        """Record until the loop ends."""
        length = max(1, round(self.episode_s * run.robot_env.loop.rate_hz))
        while not run.should_end:
            for count, (step, _) in enumerate(run.episode(), 1):
                self.add(step)
                if count % length == 0:
                    self.recorder.end_episode()
                self._tell()
            self.recorder.end_episode()

    def teardown(self, run: RobotRun, error: BaseException | None) -> None:
        """Close the dataset; tell of the episodes that were not told of."""
        super().teardown(run, error)
        self._tell()

    def _tell(self) -> None:
        number = self.recorder.num_episodes
        if self.on_saved is not None and number - self._told >= self.every:
            self._told = number - number % self.every
            self.on_saved(self._told)


class HighlightRecording(Recording):
    """Keep the last seconds in memory, and record them when a person asks.

    ``"save"`` records what the ring holds and everything from there on; ``"save"``
    again ends that episode. So does the end of the environment's episode.

    Args:
        recorder: of the dataset; its ``capacity`` has to hold the ring's frames.

    Keyword Args:
        seconds: of the past that are kept.
        megabytes: of memory at most (10^6 bytes).

    Examples:
        >>> import torch
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import *
        >>> clock, writer = FakeClock(), FakeEpisodeWriter()
        >>> robot = FakeRobot(clock=clock)
        >>> loop = ControlLoop(30.0, duration_s=2.0, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave", loop=loop)
        >>> run = RobotRun(env, SlowPolicy(lambda call: torch.zeros(2)))
        >>> recorder = BackgroundRecorder(writer)
        >>> run.keys = ScriptedKeys({49: ["save"]})  # after 50 steps
        >>> run_strategy(HighlightRecording(recorder, seconds=1.0), run)
        >>> [len(episode) for episode in writer.episodes]
        [40]
    """

    def __init__(
        self,
        recorder: BackgroundRecorder,
        *,
        seconds: float = 30.0,
        megabytes: float = 2048.0,
    ) -> None:
        super().__init__(recorder)
        self.seconds, self.megabytes = seconds, megabytes
        self.ring: FrameRing | None = None

    def setup(self, run: RobotRun) -> None:
        """Make the ring."""
        rate_hz = run.robot_env.loop.rate_hz
        self.ring = FrameRing(self.seconds, self.megabytes, rate_hz)

    def run(self, run: RobotRun) -> None:
        """Watch until the loop ends."""
        ring = self.ring
        assert ring is not None
        while not run.should_end:
            is_live = False
            for step, events in run.episode():
                frame = recorded_frame(step)
                if is_live:
                    self.recorder.add(frame)
                else:
                    ring.add(frame)
                if "save" in events:
                    if is_live:
                        self.recorder.end_episode()
                    for past in ring.take():
                        self.recorder.add(past)
                    is_live = not is_live
            if is_live:
                self.recorder.end_episode()
            ring.take()


class CorrectionRecording(Recording):
    """Record what a person corrects of a policy (DAgger).

    The run's policy is a :class:`CorrectionPolicy`. Frames carry ``is_intervention``,
    True = the person acted.

    Args:
        recorder: of the dataset.
        corrections_only: True = each correction is an episode of its own, and the
            policy's frames are not recorded; False = everything is.

    Examples:
        >>> import torch
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import *
        >>> clock, writer = FakeClock(), FakeEpisodeWriter()
        >>> robot = FakeRobot(clock=clock)
        >>> loop = ControlLoop(30.0, duration_s=1.0, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="wave", loop=loop)
        >>> run = RobotRun(env, SlowPolicy(lambda call: torch.zeros(2)))
        >>> recorder = BackgroundRecorder(writer)
        >>> def correct(call):
        ...     return torch.ones(2) if 10 <= call < 15 else None
        >>> person = TeleoperatorPolicy(
        ...     FakeTeleoperator(robot.metadata, correct), rate_hz=30.0
        ... )
        >>> run.policy = CorrectionPolicy(run.policy, person)
        >>> run_strategy(CorrectionRecording(recorder, corrections_only=True), run)
        >>> [len(episode) for episode in writer.episodes]
        [5]
    """

    def __init__(
        self, recorder: BackgroundRecorder, *, corrections_only: bool = False
    ) -> None:
        super().__init__(recorder)
        self.corrections_only = corrections_only
        self.corrections = 0

    def run(self, run: RobotRun) -> None:
        """Record until the loop ends."""
        while not run.should_end:
            before = False
            for step, _ in run.episode():
                acts = bool(step.get(IS_INTERVENTION_KEY).any())
                self.corrections += acts and not before
                if acts or not self.corrections_only:
                    self.add(step)
                elif before:
                    self.recorder.end_episode()
                before = acts
            self.recorder.end_episode()
