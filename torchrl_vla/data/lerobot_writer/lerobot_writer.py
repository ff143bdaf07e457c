"""Record a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from tensordict import NestedKey, TensorDictBase

from torchrl_vla._internal.durable_files import OWNER, remove
from torchrl_vla.data.lerobot_writer.dataset_assembly import assemble
from torchrl_vla.data.lerobot_writer.episode_buffer import EpisodeBuffer
from torchrl_vla.data.lerobot_writer.frame_schema import FrameSchema, read_tasks
from torchrl_vla.data.lerobot_writer.recording_journal import Journal, RecordingSettings
from torchrl_vla.data.lerobot_writer.video_encoder import VideoEncoding
from torchrl_vla.schema import (
    ExecutionError,
    InstructionTable,
    MetadataError,
    RobotDatasetMetadata,
    SchemaError,
    check_images_are_fresh,
    import_extra,
)

_IMAGES = ("video", "png")


class LeRobotWriter:
    """Write steps as a LeRobot v3.0 dataset, an episode at a time, without LeRobot.

    ``LeRobotDataset`` and :class:`~torchrl_vla.data.LeRobotDemonstrations` open the
    folder once it is closed. Until then it holds a note that says that it is
    unfinished, and both refuse it. An episode that was ended is on the disk: a process
    that is killed loses the one that it was recording and no other, and
    :meth:`resume` goes on. Closing copies the episodes into LeRobot's files, with
    videos as they are, so that the folder is twice as large for a moment.

    Statistics are exact: of all frames, and for cameras of all their pixels, before
    any loss of a codec. LeRobot's own differ in their quantiles, which are averages
    of each episode's and so lie too far inside, and in those of cameras, which are of
    some frames. Those in ``meta/episodes`` are of one episode, here as there.

    **Reads** robot space: ``("observation", ...)``, with images uint8 ``[3, h, w]``;
    ``language_instruction``, text or id; ``action`` ``[A]``; and, where they are
    there, ``("next", "reward")``, ``done``, ``terminated``, ``truncated`` and
    ``success``. Everything else takes an entry in ``extra_keys``. The first step says
    which there are; every step has to have the same.

    Args:
        folder: not there yet, or empty. It is made at once.

    Keyword Args:
        metadata: of the robot: names, dimensions, cameras, its rate in whole frames
            per second. What LeRobot has no place for
            (units, bounds) goes to ``meta/torchrl_vla.json``, which it passes over.
        instructions: for instructions that are ids; None = they are text.
        images: ``"video"``, or ``"png"``: without loss, in the tables, and larger.
        encoding: of videos; None = LeRobot's.
        extra_keys: entries to record beside the usual ones.
        data_file_size_mb: a table that would exceed it is not begun with another
            episode, as in LeRobot.
        video_file_size_mb: likewise.

    Raises:
        MetadataError: there is no rate, or not a whole one.
        FileExistsError: the folder has contents.
        ValueError: ``images`` is neither.
        MissingExtraError: the extra ``datasets`` is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.data import LeRobotDemonstrations
        >>> folder = tempfile.mkdtemp()
        >>> metadata = RobotDatasetMetadata("reach", control_frequency_hz=10)
        >>> with LeRobotWriter(folder, metadata=metadata) as writer:
        ...     for step in range(3):
        ...         observation = {"state": torch.zeros(2)}
        ...         frame = {"observation": observation, "action": torch.ones(2)}
        ...         frame["language_instruction"] = "reach the block"
        ...         writer.add(TensorDict(frame))
        ...     writer.end_episode()
        >>> LeRobotDemonstrations.from_folder(folder, cache_folder=tempfile.mkdtemp())
        LeRobotDemonstrations ...: 1 episodes, 3 frames, cameras: none
         episodes    frames  instruction
                1         3  reach the block

    Source: the v3.0 layout that ``LeRobotDataset.create`` of lerobot 0.6.1 writes.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable | None = None,
        images: Literal["video", "png"] = "video",
        encoding: VideoEncoding | None = None,
        extra_keys: Sequence[NestedKey] = (),
        data_file_size_mb: float = 100,
        video_file_size_mb: float = 200,
    ) -> None:
        if images not in _IMAGES:
            raise ValueError(f"{OWNER}: expected images of {_IMAGES}, got {images!r}.")
        if images == "png" and encoding is not None:
            raise ValueError(
                f"{OWNER}: expected no encoding with images='png', got {encoding}. "
                "Pass images='video'."
            )
        check_writer_extras(images)
        settings = RecordingSettings(
            metadata=metadata,
            fps=_whole_rate(metadata),
            encoding=(encoding or VideoEncoding()) if images == "video" else None,
            extra_keys=tuple(extra_keys),
            data_file_size_mb=data_file_size_mb,
            video_file_size_mb=video_file_size_mb,
        )
        self._begin(Journal.create(Path(folder), settings), instructions)

    @classmethod
    def resume(
        cls, folder: Path | str, *, instructions: InstructionTable | None = None
    ) -> LeRobotWriter:
        """Go on with a recording that was not closed, with the settings it has.

        Raises:
            FileNotFoundError: there is none.
            FileExistsError: it is finished.
            ExecutionError: another writer holds it.
        """
        writer = cls.__new__(cls)
        writer._begin(Journal.open(Path(folder)), instructions)
        return writer

    def _begin(self, journal: Journal, instructions: InstructionTable | None) -> None:
        self._journal = journal
        self._instructions = instructions
        self._episode: EpisodeBuffer | None = None
        self._is_open = True

    @property
    def folder(self) -> Path:
        """Where the dataset is written."""
        return self._journal.folder

    @property
    def num_episodes(self) -> int:
        """The number of finished episodes."""
        return len(self._journal.episodes)

    @property
    def num_frames(self) -> int:
        """The number of steps of the episode that is being recorded."""
        return 0 if self._episode is None else len(self._episode)

    def add(self, step: TensorDictBase) -> None:
        """Append one step, ``[]`` or ``[1]``, to the episode.

        Its images are encoded before this returns.

        Raises:
            SchemaError: the step has another batch size, entries that cannot be
                recorded or are not what they were in the first step, or an image
                that was not drawn at this step.
            MissingKeyError: the action or the instruction is missing.
            MetadataError: it contradicts the metadata.
        """
        if tuple(step.batch_size) not in ((), (1,)):
            raise SchemaError(
                f"{OWNER}.add: expected one step, batch size [] or [1], got "
                f"{list(step.batch_size)}. Give each environment a writer of its own, "
                "pass a whole episode [T] to add_episode, or a rollout to "
                "write_lerobot."
            )
        self._extend(step.reshape(1))

    def add_episode(self, steps: TensorDictBase) -> None:
        """Append all steps ``[T]`` of one episode, and end it.

        Raises:
            SchemaError: as :meth:`add`.
            ExecutionError: there are steps of an episode that was not ended.
        """
        self._check_is_between_episodes("add_episode")
        if steps.batch_dims != 1 or not len(steps):
            raise SchemaError(
                f"{OWNER}.add_episode: expected steps [T] with T >= 1, got batch size "
                f"{list(steps.batch_size)}."
            )
        try:
            self._extend(steps)
            self.end_episode()
        except BaseException:
            self._drop_episode()
            raise

    def _extend(self, steps: TensorDictBase) -> None:
        self._check_is_open()
        check_images_are_fresh(OWNER, steps)
        settings = self._journal.settings
        schema = self._journal.schema if self._episode is None else self._episode.schema
        if schema is None:
            schema = FrameSchema.from_steps(
                steps,
                settings.metadata,
                image_dtype=settings.image_dtype,
                extra_keys=settings.extra_keys,
            )
        columns = schema.columns(steps, settings.extra_keys)
        tasks = read_tasks(steps, self._instructions)
        if self._episode is None:
            self._episode = EpisodeBuffer(
                schema,
                self._journal.partial,
                fps=settings.fps,
                encoding=settings.encoding,
            )
        try:
            self._episode.add(columns, tasks)
        except BaseException:  # some cameras may have the step and others not
            self._drop_episode()
            raise

    def end_episode(self) -> None:
        """Finish the episode. When this returns it is on the disk.

        Raises:
            ExecutionError: it has no steps.
        """
        self._check_is_open()
        if self._episode is None:
            raise ExecutionError(
                f"{OWNER}.end_episode: expected an episode with steps, got none since "
                f"the last of {self.num_episodes} episode(s) ended. Call add(step) "
                "first."
            )
        episode, self._episode = self._episode, None
        table = episode.finish()
        self._journal.commit(table, episode.schema, episode.histograms)

    def discard_episode(self) -> None:
        """Drop the steps since the last episode ended; there may be none."""
        self._check_is_open()
        self._drop_episode()

    def _drop_episode(self) -> None:
        if self._episode is not None:
            self._episode.discard()
            self._episode = None
            remove(self._journal.partial)

    def close(self) -> None:
        """Put the episodes together; from now on the folder is a dataset.

        Closing again does nothing.

        Raises:
            ExecutionError: there are steps of an episode that was not ended, or there
                is no episode at all. Nothing is lost, and the recording is open.
        """
        if not self._is_open:
            return
        self._check_is_between_episodes("close")
        schema = self._journal.schema
        if schema is None:
            raise ExecutionError(
                f"{OWNER}.close: expected at least one finished episode, got none. "
                f"Record one, or leave with release() and delete {str(self.folder)!r}."
            )
        assemble(self.folder, self._journal.episodes, schema, self._journal.settings)
        self._journal.finish()
        self._is_open = False

    def release(self) -> None:
        """Leave the folder unfinished, for :meth:`resume` to go on with."""
        if self._is_open:
            self._drop_episode()
            self._journal.release()
            self._is_open = False

    def _check_is_open(self) -> None:
        if not self._is_open:
            raise ExecutionError(
                f"{OWNER}: expected an open recording, got one that was closed, at "
                f"{str(self.folder)!r}. Record into another folder."
            )

    def _check_is_between_episodes(self, caller: str) -> None:
        self._check_is_open()
        if self._episode is not None:
            raise ExecutionError(
                f"{OWNER}.{caller}: expected no steps of an episode that was not "
                f"ended, got {self.num_frames}. Call end_episode() or "
                "discard_episode() first."
            )

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; after an error, release instead: the recording can be resumed."""
        try:
            if error is None:
                self.close()
        finally:
            self.release()

    def __repr__(self) -> str:
        state = "recording" if self._is_open else "closed"
        return (
            f"{OWNER}({str(self.folder)!r}, {state}, {self.num_episodes} episodes, "
            f"{self.num_frames} frames pending)"
        )


def check_writer_extras(images: Literal["video", "png"]) -> None:
    """Import what writing takes now, and not when the first episode ends.

    Raises:
        MissingExtraError: a package of the extra ``datasets`` is absent.
    """
    for module in ("pyarrow.parquet", "av" if images == "video" else "PIL.Image"):
        import_extra(module, "datasets", OWNER)


def _whole_rate(metadata: RobotDatasetMetadata) -> int:
    rate_hz = metadata.control_frequency_hz
    if rate_hz is None or rate_hz != int(rate_hz):
        raise MetadataError(
            f"{OWNER}: expected a whole number, LeRobot's fps, at "
            f"control_frequency_hz of the metadata of {metadata.dataset_id!r}, got "
            f"{rate_hz}. Set it with dataclasses.replace(metadata, "
            "control_frequency_hz=...)."
        )
    return int(rate_hz)
