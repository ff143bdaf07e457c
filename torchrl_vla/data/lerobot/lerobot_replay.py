"""Replay buffer of a LeRobot dataset."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import Compose, Transform

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.data.demonstrations import choose_sampler
from torchrl_vla.data.lerobot.lerobot_dataset import (
    HubOptions,
    LeRobotDemonstrations,
    OpenOptions,
)
from torchrl_vla.data.lerobot.replay_spellings import (
    check_names,
    read_delta_timestamps,
)
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata
from torchrl_vla.schema.lerobot_names import is_repo_id
from torchrl_vla.transforms import ActionChunkKeys, ActionChunkTransform

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ReplayOptions(HubOptions, total=False):
    """Options of :class:`LeRobotExperienceReplay` beside its arguments."""

    repo_id: str
    delta_timestamps: Mapping[str, Sequence[float]] | None
    slice_len: int | None
    num_slices: int | None


class LeRobotExperienceReplay(TensorDictReplayBuffer):
    """Replay buffer of a LeRobot dataset, format v2.1 or v3.0, without LeRobot.

    A sample is a batch of i.i.d. frames of the selected episodes. Chunks and histories
    are padded and masked at the ends of an episode. Images are decoded in batches, each
    frame once. :class:`LeRobotDemonstrations` documents the columns and the stored
    statistics.

    **Reads** a folder, or a repository of the Hugging Face Hub.

    **Writes** in robot space ``action`` float32 ``[B, A]`` and the dataset's other
    columns under our names; ``language_instruction`` int64 ``[B]``; each camera uint8
    ``[B, C, h, w]``. With ``chunk_size`` also ``action_chunk`` ``[B, H, A]`` and
    ``action_is_pad`` bool ``[B, H]``. With ``history_size`` above 1 also
    ``observation_history`` ``[B, T, ...]`` and ``history_is_pad`` bool ``[B, T]``.
    TorchRL adds ``index``, the row in the buffer.

    Args:
        source: a folder, ``"user/name"`` on the Hub (a folder of that name takes
            precedence), or an open dataset.
        batch_size: frames per sample.

    Keyword Args:
        chunk_size: ``H``; None = no chunks.
        first_step: the chunk's first action, in steps from the frame; see
            :class:`~torchrl_vla.transforms.ActionChunkTransform`.
        history_size: ``T``, the number of observations including the current one.
        sampler: None = i.i.d. frames, without those whose ``is_labeled`` is False.
        transform: applied last, e.g. :class:`~torchrl_vla.transforms.ActionScaling`.
        seed: of the sampler.
        **options: those of :meth:`LeRobotDemonstrations.from_folder` except
            ``dataset_id``, and ``revision`` of
            :meth:`LeRobotDemonstrations.from_hub`; these methods list the errors. An
            open dataset accepts ``episodes`` only. TorchRL's and LeRobot's spellings
            are: ``repo_id``, the source; ``delta_timestamps`` for ``chunk_size``,
            ``first_step`` and ``history_size``; ``slice_len`` or ``num_slices``, which
            sample consecutive frames of an episode, flat ``[num_slices * slice_len]``.

    Raises:
        FileNotFoundError: the folder or repository does not exist.
        ValueError: an option does not apply to this kind of source.
        SettingsError: an argument is unknown, or says something else than another.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import write_lerobot
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=16, seed=0)
        >>> folder = write_lerobot(
        ...     env.rollout(5, env.make_expert(), break_when_any_done=False),
        ...     tempfile.mkdtemp() + "/reach",
        ...     metadata=env.metadata,
        ...     instructions=env.instructions,
        ...     images="png",
        ...     progress=False,
        ... )
        >>> replay = LeRobotExperienceReplay(
        ...     folder, 8, chunk_size=3, seed=0, cache_folder=tempfile.mkdtemp()
        ... )
        >>> sample = replay.sample()
        >>> sample["action_chunk"].shape, sample["observation", "image"].shape
        (torch.Size([8, 3, 2]), torch.Size([8, 3, 16, 16]))
        >>> sum(len(batch) for batch in replay.iter_epoch(4))
        10
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        source: str | Path | LeRobotDemonstrations | None = None,
        batch_size: int | None = None,
        *,
        chunk_size: int | None = None,
        first_step: int = 0,
        history_size: int = 1,
        sampler: Sampler | None = None,
        transform: Transform | None = None,
        seed: int | None = None,
        **options: Unpack[ReplayOptions],
    ) -> None:
        check_names(options, _OPTIONS)
        deltas_s = options.pop("delta_timestamps", None)
        slices = options.pop("slice_len", None), options.pop("num_slices", None)
        repo_id = options.pop("repo_id", None)
        place = repo_id if source is None else source
        if batch_size is None or place is None or (source and repo_id):
            raise SettingsError(
                "LeRobotExperienceReplay: expected a batch_size and one of source and "
                f"repo_id, got batch_size={batch_size}, source={source!r} and "
                f"repo_id={repo_id!r}."
            )
        dataset = _open(place, options)
        if deltas_s is not None:
            if (chunk_size, first_step, history_size) != (None, 0, 1):
                raise SettingsError(
                    "LeRobotExperienceReplay: expected delta_timestamps alone, got it "
                    "beside chunk_size, first_step or history_size, which say the same."
                )
            chunk_size, first_step, history_size = read_delta_timestamps(
                deltas_s, cast(float, dataset.metadata.control_frequency_hz)
            )
        self.dataset = dataset
        self._chunk_size, self._first_step = chunk_size, first_step
        self._history_size, self._seed = history_size, seed
        self._given_sampler, self._given_transform = sampler, transform
        self._slices = slices
        steps: list[Transform | None] = [dataset.observations(history_size)]
        if chunk_size is not None:
            # LeRobot ends a chunk at the end of the episode, whatever next.done is.
            chunks = ActionChunkTransform(
                chunk_size,
                storage=dataset.storage,
                first_step=first_step,
                keys=ActionChunkKeys(done=None),
            )
            steps.append(chunks)
        found = [step for step in (*steps, transform) if step is not None]
        super().__init__(
            # Its own: TorchRL keeps the generator of a buffer's draws in its storage.
            storage=TensorStorage(dataset.frames),
            sampler=choose_sampler(dataset.frames, batch_size, sampler, *slices),
            batch_size=batch_size,
            transform=Compose(*found) if found else None,
        )
        if seed is not None:
            self.set_rng(torch.Generator().manual_seed(seed))

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """Names, units and statistics of the numbers."""
        return self.dataset.metadata

    @property
    def instructions(self) -> InstructionTable:
        """The texts of ``language_instruction``."""
        return self.dataset.instructions

    def split(
        self, fraction: float, seed: int = 0
    ) -> tuple[LeRobotExperienceReplay, LeRobotExperienceReplay]:
        """Split by episode, e.g. into training and validation, with the same metadata.

        Raises:
            ValueError: one part would be empty.
        """
        first, second = self.dataset.split(fraction, seed)
        return self._over(first), self._over(second)

    def _over(self, dataset: LeRobotDemonstrations) -> LeRobotExperienceReplay:
        transform = self._given_transform
        return LeRobotExperienceReplay(
            dataset,
            self._batch_size,
            chunk_size=self._chunk_size,
            first_step=self._first_step,
            history_size=self._history_size,
            sampler=copy.deepcopy(self._given_sampler),
            transform=None if transform is None else transform.clone(),
            seed=self._seed,
            slice_len=self._slices[0],
            num_slices=self._slices[1],
        )

    def iter_epoch(
        self, batch_size: int | None = None, *, seed: int = 0, drop_last: bool = False
    ) -> Iterator[TensorDictBase]:
        """Yield batches of all frames once, in a random order.

        Args:
            batch_size: None = the buffer's.

        Keyword Args:
            seed: of the order; pass another one in each epoch.
            drop_last: True = skip a last batch that is smaller.
        """
        size = self._batch_size if batch_size is None else batch_size
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(len(self), generator=generator).split(size):
            if len(rows) == size or not drop_last:
                yield self[rows].set("index", rows)


_OPTIONS = tuple(ReplayOptions.__optional_keys__)


def _open(
    source: str | Path | LeRobotDemonstrations, options: HubOptions
) -> LeRobotDemonstrations:
    """Open a folder, which takes precedence, or a repository of the Hub."""
    if isinstance(source, LeRobotDemonstrations):
        given = {**options, "episodes": None}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ValueError(
                f"LeRobotExperienceReplay: expected no {unused} beside an open "
                "dataset. Pass them to LeRobotDemonstrations.from_folder."
            )
        episodes = options.get("episodes")
        return source if episodes is None else source.select_episodes(episodes)
    revision = options.pop("revision", None)
    opening: OpenOptions = options
    if Path(source).expanduser().is_dir():
        if revision is not None:
            raise ValueError(
                "LeRobotExperienceReplay: expected a repository of the Hub beside "
                f"revision={revision!r}, got the folder {str(source)!r}."
            )
        return LeRobotDemonstrations.from_folder(source, **opening)
    if not is_repo_id(source):
        raise FileNotFoundError(
            "LeRobotExperienceReplay: expected a folder or a repository 'user/name', "
            f"got {str(source)!r}, which does not exist."
        )
    return LeRobotDemonstrations.from_hub(str(source), revision=revision, **opening)
