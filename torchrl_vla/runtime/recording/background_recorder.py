"""Recorder that encodes beside the control loop, and never blocks it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from tensordict import TensorDictBase
from typing_extensions import Self


class EpisodeWriter(Protocol):
    """Write one frame or episode at a time, as ``LeRobotWriter`` does."""

    @property
    def num_episodes(self) -> int:
        """Finished episodes."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames of the present episode."""
        ...

    def add(self, step: TensorDictBase) -> None:
        """Append a frame."""
        ...

    def end_episode(self) -> None:
        """Finish the episode."""
        ...

    def discard_episode(self) -> None:
        """Drop the episode."""
        ...

    def close(self) -> None:
        """Finish the dataset."""
        ...

    def release(self) -> None:
        """Leave the dataset unfinished, to be resumed."""
        ...


class BackgroundRecorder:
    """Hand frames to a writer in a thread of its own, and drop what it cannot take.

    :meth:`add` never waits: where ``capacity`` frames are waiting already, the frame is
    dropped and counted. Ends of episodes are never dropped. What is finished on the
    disk is :attr:`num_episodes`, after :meth:`flush` everything that was handed over.
    An error of the writer is raised by the next call.

    As a context manager it closes the dataset; after an error it is left unfinished, to
    be resumed.

    Args:
        writer: of the dataset; it is used in the thread alone.

    Keyword Args:
        capacity: frames that may wait; each holds its images.

    Raises:
        ValueError: the capacity is below 1.

    Examples:
        >>> class Lines:
        ...     num_episodes, num_frames = 0, 0
        ...     def add(self, step): self.num_frames += 1
        ...     def end_episode(self): self.num_episodes, self.num_frames = 1, 0
        ...     def close(self): print(self.num_episodes, "episode")
        >>> from tensordict import TensorDict
        >>> recorder = BackgroundRecorder(Lines())
        >>> recorder.add(TensorDict()), recorder.end_episode()
        (True, None)
        >>> recorder.close()
        1 episode
        >>> recorder
        BackgroundRecorder(1 episodes, 1 frames, 0 dropped)
    """

    def __init__(self, writer: EpisodeWriter, *, capacity: int = 256) -> None:
        if capacity < 1:
            raise ValueError(
                f"BackgroundRecorder: expected capacity >= 1, got {capacity}."
            )
        self.writer, self.capacity = writer, capacity
        self.dropped = self.dropped_of_episode = self.added = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._work, name="torchrl_vla-recorder", daemon=True
        )
        self._thread.start()

    @property
    def num_episodes(self) -> int:
        """Episodes that are finished on the disk."""
        return self.writer.num_episodes

    def add(self, frame: TensorDictBase) -> bool:
        """Hand a frame over; False = it was dropped.

        Args:
            frame: ``[]`` or ``[1]``, whose tensors nobody writes to any more.
        """
        self._raise()
        with self._lock:
            if self._waiting >= self.capacity:
                self.dropped += 1
                self.dropped_of_episode += 1
                return False
            self._waiting += 1
        self.added += 1
        self._jobs.put(lambda: self._add(frame))
        return True

    def end_episode(self) -> None:
        """End the episode behind the frames that wait; nothing where it has none."""
        self._raise()
        self.dropped_of_episode = 0
        self._jobs.put(self._end)

    def discard_episode(self) -> None:
        """Drop the episode, with the frames that wait."""
        self._raise()
        self.dropped_of_episode = 0
        self._jobs.put(self.writer.discard_episode)

    def flush(self) -> None:
        """Wait until everything that was handed over is on the disk."""
        done = threading.Event()
        self._jobs.put(done.set)
        while not done.wait(0.05) and self._error is None:
            pass
        self._raise()

    def close(self) -> None:
        """Write what waits, end its episode, and finish the dataset.

        Without any episode it is left unfinished.
        """
        self.end_episode()
        self.flush()
        self._end_thread()
        if self.writer.num_episodes:
            self.writer.close()
        else:
            self.writer.release()

    def release(self) -> None:
        """Drop what waits, and leave the dataset unfinished, to be resumed."""
        self._error = self._error or InterruptedError("the recorder was released")
        self._end_thread()
        self.writer.release()

    def _add(self, frame: TensorDictBase) -> None:
        try:
            self.writer.add(frame)
        finally:
            with self._lock:
                self._waiting -= 1

    def _end(self) -> None:
        if self.writer.num_frames:
            self.writer.end_episode()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue
            try:
                job()
            except BaseException as error:  # raised by the next call
                self._error = error

    def _end_thread(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; after an error, release instead."""
        if error is None:
            self.close()
        else:
            self.release()

    def __repr__(self) -> str:
        return (
            f"BackgroundRecorder({self.num_episodes} episodes, {self.added} frames, "
            f"{self.dropped} dropped)"
        )
