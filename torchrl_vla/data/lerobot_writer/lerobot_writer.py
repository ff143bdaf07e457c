"""Recording of a LeRobot dataset, one step or episode at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from tensordict import NestedKey, TensorDictBase

from torchrl_vla._internal.durable_files import remove
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.lerobot_writer.dataset_assembly import assemble
from torchrl_vla.data.lerobot_writer.episode_buffer import EpisodeBuffer
from torchrl_vla.data.lerobot_writer.frame_schema import (
    OWNER,
    FrameSchema,
    read_tasks,
)
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

Images = Literal["video", "png"] | VideoEncoding


class LeRobotWriter:
    """Writer of a LeRobot v3.0 dataset, one episode at a time, without LeRobot.

    ``LeRobotDataset`` and :class:`~torchrl_vla.data.LeRobotDemonstrations` open the
    folder after :meth:`close`. Until then the folder contains a note that it is
    unfinished, and both refuse it. Finished episodes are on the disk: a crash loses
    only the episode that was being recorded, and :meth:`resume` continues. Closing
    copies the episodes into LeRobot's files without encoding them again, and needs
    twice the disk space for a moment.

    **Reads** robot space: ``("observation", ...)``, with images uint8 ``[3, h, w]``;
    ``language_instruction``, text or id; ``action`` ``[A]``; and, where present,
    ``("next", "reward")``, ``done``, ``terminated``, ``truncated`` and ``success``.
    Other entries must be listed in ``extra_keys``. The first step determines the
    entries; every step must have the same.

    Note:
        Statistics are exact: of all frames, and of all pixels before lossy encoding.
        LeRobot's quantiles are averages over episodes, and its camera statistics are of
        a subset of the frames. As in LeRobot, statistics in ``meta/episodes`` are those
        of one episode.

    Args:
        folder: does not exist, or is empty. It is created at once.

    Keyword Args:
        metadata: of the robot: names, dimensions, cameras, and its rate in whole frames
            per second. Fields that LeRobot does not have (units, bounds) are written to
            ``meta/torchrl_vla.json``, which LeRobot ignores.
        instructions: for instructions that are ids; None = they are text.
        images: ``"video"`` for LeRobot's encoding, another :class:`VideoEncoding`, or
            ``"png"``: lossless, in the tables, and larger.
        extra_keys: further entries to record.
        data_file_size_mb: an episode that would exceed this size starts a new file in
            ``data/``, as in LeRobot.
        video_file_size_mb: the same for ``videos/``.

    Raises:
        MetadataError: the rate is missing, or not a whole number.
        FileExistsError: the folder has contents.
        ValueError: ``images`` has another value.
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
        images: Images = "video",
        extra_keys: Sequence[NestedKey] = (),
        data_file_size_mb: float = 100,
        video_file_size_mb: float = 200,
    ) -> None:
        check_writer_extras(images)
        settings = RecordingSettings(
            metadata=metadata,
            fps=_whole_rate(metadata),
            encoding=_encoding(images),
            extra_keys=tuple(extra_keys),
            data_file_size_mb=data_file_size_mb,
            video_file_size_mb=video_file_size_mb,
        )
        self._begin(Journal.create(Path(folder), settings), instructions)

    @classmethod
    def resume(
        cls, folder: Path | str, *, instructions: InstructionTable | None = None
    ) -> LeRobotWriter:
        """Continue a recording that was not closed, with its settings.

        Raises:
            FileNotFoundError: there is no recording.
            FileExistsError: the dataset is finished.
            ExecutionError: another writer is recording into the folder.
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
        """The folder of the dataset."""
        return self._journal.folder

    @property
    def num_episodes(self) -> int:
        """The number of finished episodes."""
        return len(self._journal.episodes)

    @property
    def num_frames(self) -> int:
        """The number of steps in the current episode."""
        return 0 if self._episode is None else len(self._episode)

    def add(self, step: TensorDictBase) -> None:
        """Append one step, ``[]`` or ``[1]``, to the current episode.

        Its images are encoded before this method returns.

        Raises:
            SchemaError: the step has another batch size, entries that cannot be
                recorded or that differ from the first step, or an image that was
                rendered at an earlier step.
            MissingKeyError: the action or the instruction is missing.
            MetadataError: the step contradicts the metadata.
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
            SchemaError: as in :meth:`add`.
            ExecutionError: another episode has not ended.
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
        except BaseException:  # only some cameras may have the step
            self._drop_episode()
            raise

    def end_episode(self) -> None:
        """Finish the episode and flush it to the disk.

        Raises:
            ExecutionError: the episode has no steps.
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
        """Drop the steps of the current episode, if there are any."""
        self._check_is_open()
        self._drop_episode()

    def _drop_episode(self) -> None:
        if self._episode is not None:
            self._episode.discard()
            self._episode = None
            remove(self._journal.partial)

    def close(self) -> None:
        """Assemble the dataset. Closing again does nothing.

        Raises:
            ExecutionError: an episode has not ended, or there is no episode. Nothing is
                lost, and the recording remains open.
        """
        if not self._is_open:
            return
        self._check_is_between_episodes("close")
        schema = self._journal.schema
        if schema is None:
            raise ExecutionError(
                f"{OWNER}.close: expected at least one finished episode, got none. "
                f"Record one, or call release() and delete {str(self.folder)!r}."
            )
        assemble(self.folder, self._journal.episodes, schema, self._journal.settings)
        self._journal.finish()
        self._is_open = False

    def release(self) -> None:
        """Leave the folder unfinished, for :meth:`resume` to continue."""
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
        """Close; after an error, release instead, so that it can be resumed."""
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


def check_writer_extras(images: Images) -> None:
    """Import the packages for writing early, not at the end of the first episode.

    Raises:
        MissingExtraError: a package of the extra ``datasets`` is missing.
        SchemaError: FFmpeg has no such encoder.
    """
    import_extra("pyarrow.parquet", "datasets", OWNER)
    package = import_extra("PIL.Image" if images == "png" else "av", "datasets", OWNER)
    encoding = _encoding(images)
    if encoding is not None:
        origin = Origin(OWNER, "this FFmpeg", "Pass VideoEncoding.h264().")
        with origin.reading(f"an encoder {encoding.codec!r}", "images"):
            package.codec.Codec(encoding.codec, "w")


def _encoding(images: Images) -> VideoEncoding | None:
    if images == "png":
        return None
    if isinstance(images, VideoEncoding):
        return images
    if images != "video":
        raise ValueError(
            f"{OWNER}: expected images of 'video', 'png' or a VideoEncoding, got "
            f"{images!r}."
        )
    return VideoEncoding()


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
