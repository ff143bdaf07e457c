"""Writer of episodes that keeps them in memory."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase


class FakeEpisodeWriter:
    """Keep frames and episodes in memory, where a ``LeRobotWriter`` writes files.

    ``episodes`` is a list of lists of frames; ``ended_as`` is ``"closed"``,
    ``"released"`` or None.

    Args:
        on_add: is called before each frame, and may wait or raise.

    Examples:
        >>> from tensordict import TensorDict
        >>> writer = FakeEpisodeWriter()
        >>> writer.add(TensorDict())
        >>> writer.end_episode()
        >>> writer.num_episodes, writer.num_frames
        (1, 0)
    """

    def __init__(self, on_add: Callable[[], None] | None = None) -> None:
        self.episodes: list[list[TensorDictBase]] = []
        self.frames: list[TensorDictBase] = []
        self.ended_as: str | None = None
        self.on_add = on_add

    @property
    def num_episodes(self) -> int:
        """Finished episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        """Frames of the present episode."""
        return len(self.frames)

    def add(self, step: TensorDictBase) -> None:
        """Append a frame."""
        if self.on_add is not None:
            self.on_add()
        self.frames.append(step)

    def end_episode(self) -> None:
        """Finish the episode."""
        self.episodes.append(self.frames)
        self.frames = []

    def discard_episode(self) -> None:
        """Drop the episode."""
        self.frames = []

    def close(self) -> None:
        """Finish the dataset."""
        self.ended_as = "closed"

    def release(self) -> None:
        """Leave the dataset unfinished."""
        self.ended_as = "released"
