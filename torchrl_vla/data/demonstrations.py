"""Protocol of demonstration datasets, with the methods that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import (
    RandomSampler,
    SliceSampler,
    TensorDictReplayBuffer,
    TensorStorage,
)
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import Compose, Transform

from torchrl_vla.data.row_sampler import RowSampler
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_IS_STALE_KEY,
    INSTRUCTION_KEY,
    IS_LABELED_KEY,
    ArgumentTypeError,
    InstructionTable,
    RobotDatasetMetadata,
    check_images_are_fresh,
)
from torchrl_vla.transforms import ObservationHistory

_Self = TypeVar("_Self", bound="Demonstrations")


@runtime_checkable
class Demonstrations(Protocol):
    """Frames of demonstrations with their metadata and instructions.

    Training recipes, mixtures and :func:`write_lerobot` take any class with these
    members. A subclass sets the four attributes, implements :meth:`select_episodes`,
    and overrides :meth:`observations` if its frames do not hold the images.
    """

    #: ``[F]`` steps in the canonical schema, with ``episode_index``, ``frame_index``.
    frames: TensorDict
    #: Names, units and statistics of the numbers in ``frames``.
    metadata: RobotDatasetMetadata
    #: The texts of the instruction ids in ``frames``.
    instructions: InstructionTable
    #: The frames as a TorchRL storage, for ``ActionChunkTransform(storage=...)``.
    storage: TensorStorage

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def episodes(self) -> Tensor:
        """The indices of the episodes, int64, ascending."""
        return self.frames.get(EPISODE_KEY).as_subclass(Tensor).unique()

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.episodes)

    def observations(self, history_size: int = 1) -> Transform | None:
        """Make the transform that completes the observations of sampled frames.

        Args:
            history_size: above 1, the transform writes ``observation_history``.

        Returns:
            None where the frames hold all observations.
        """
        if history_size == 1:
            return None
        return ObservationHistory(history_size, storage=self.storage)

    def replay_buffer(
        self,
        batch_size: int,
        *,
        history_size: int = 1,
        transform: Transform | None = None,
        sampler: Sampler | None = None,
        slice_len: int | None = None,
        num_slices: int | None = None,
        seed: int | None = None,
    ) -> TensorDictReplayBuffer:
        """Make a replay buffer over the frames.

        Args:
            batch_size: frames per sample.

        Keyword Args:
            history_size: number of observations in ``observation_history``; 1 = none.
            transform: applied to a sample after its observations are complete.
            sampler: None = i.i.d. frames, without those whose ``is_labeled`` is False,
                since their actions are no targets, and those whose image is stale.
            slice_len: sample slices of this many consecutive frames of an episode, flat
                ``[num_slices * slice_len]``, as TorchRL's datasets do.
            num_slices: number of slices in a sample, instead of their length.
            seed: of the sampler; None = TorchRL's own generator.
        """
        if history_size > 1:
            check_images_are_fresh("replay_buffer", self.frames)
        steps = [self.observations(history_size), transform]
        found = [step for step in steps if step is not None]
        buffer = TensorDictReplayBuffer(
            # Its own: TorchRL keeps the generator of a buffer's draws in its storage.
            storage=TensorStorage(self.frames),
            sampler=choose_sampler(
                self.frames, batch_size, sampler, slice_len, num_slices
            ),
            batch_size=batch_size,
            transform=Compose(*found) if found else None,
        )
        if seed is not None:
            buffer.set_rng(torch.Generator().manual_seed(seed))
        return buffer

    def select_episodes(self: _Self, episodes: Tensor) -> _Self:
        """Return the dataset of some episodes, in memory, with the same metadata.

        The statistics remain those of the whole dataset: a policy trained on a part
        must act with the statistics that it was trained with.
        """
        ...

    def split(self: _Self, fraction: float, seed: int = 0) -> tuple[_Self, _Self]:
        """Split by episode into a random part of ``fraction`` and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        episodes = self.episodes
        cut = round(fraction * len(episodes))
        if not 0 < cut < len(episodes):
            raise ValueError(
                f"{type(self).__name__}.split: expected a fraction that leaves "
                f"episodes on both sides, got {fraction} of {len(episodes)} episodes."
            )
        generator = torch.Generator().manual_seed(seed)
        shuffled = episodes[torch.randperm(len(episodes), generator=generator)]
        first, second = shuffled[:cut], shuffled[cut:]
        return self.select_episodes(first), self.select_episodes(second)

    def __repr__(self) -> str:
        return describe(self)


def choose_sampler(
    frames: TensorDict,
    batch_size: int,
    sampler: Sampler | None,
    slice_len: int | None,
    num_slices: int | None,
) -> Sampler:
    """Return the given sampler, one of slices, or one of i.i.d. frames.

    Raises:
        SettingsError: several are asked for, or slices do not fill the batch.
    """
    given = [x for x in (sampler, slice_len, num_slices) if x is not None]
    if len(given) > 1:
        raise SettingsError(
            "replay_buffer: expected one of sampler, slice_len and num_slices, got "
            f"{given}."
        )
    if sampler is not None or not given:
        return frame_sampler(frames) if sampler is None else sampler
    check_images_are_fresh("replay_buffer", frames)
    (size,) = given
    if size < 1 or batch_size % size:
        raise SettingsError(
            "replay_buffer: expected slice_len or num_slices that divides "
            f"batch_size={batch_size}, got {size}."
        )
    length = batch_size // size if slice_len is None else slice_len
    longest = int(frames.get(FRAME_KEY).max()) + 1
    if length > longest:
        raise SettingsError(
            f"replay_buffer: expected slices no longer than an episode, got {length} "
            f"frames; the longest episode has {longest}."
        )
    return SliceSampler(slice_len=length, traj_key=EPISODE_KEY)


def frame_sampler(frames: TensorDict) -> Sampler:
    """Return a sampler of i.i.d. frames that have a label and an image of their own."""
    labels = frames.get(IS_LABELED_KEY, None)
    is_stale = frames.get(IMAGE_IS_STALE_KEY, None)
    if labels is None and is_stale is None:
        return RandomSampler()
    usable = torch.ones(len(frames), dtype=torch.bool)
    if labels is not None:
        usable &= labels.reshape(-1)
    if is_stale is not None:
        usable &= ~is_stale.reshape(-1)
    return RowSampler(usable.nonzero().squeeze(-1))


def describe(dataset: Demonstrations, details: str = "") -> str:
    """Return a summary with the numbers of episodes and frames of each instruction."""
    lines = [
        f"{type(dataset).__name__} {dataset.metadata.dataset_id!r}: "
        f"{dataset.num_episodes} episodes, {len(dataset)} frames{details}"
    ]
    if INSTRUCTION_KEY in dataset.frames:
        lines.append(f"{'episodes':>9} {'frames':>9}  instruction")
        rows = dataset.instructions.rows(dataset.frames.get(INSTRUCTION_KEY))
        episodes = dataset.frames.get(EPISODE_KEY)
        for row, text in enumerate(dataset.instructions.texts):
            mine = episodes[rows == row]
            if len(mine):
                lines.append(f"{len(mine.unique()):>9} {len(mine):>9}  {text}")
    return "\n".join(lines)


def merge_instructions(datasets: Sequence[Demonstrations]) -> InstructionTable:
    """Return the union of the tables; ids are hashes of the texts and do not change."""
    table = InstructionTable()
    for dataset in datasets:
        for text in dataset.instructions:
            table.add(text)
    return table


def check_folder_is_free(folder: Path, caller: str) -> None:
    """Refuse a folder that has contents; one that does not exist is free.

    Raises:
        FileExistsError: it has contents; lists them.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{caller}: expected no dataset at {str(folder)!r}, got "
            f"{sorted(path.name for path in folder.iterdir())}. Choose another folder, "
            "or pass overwrite=True."
        )


def check_demonstrations(caller: str, dataset: Demonstrations) -> None:
    """Refuse what are no demonstrations, such as the folder that holds them.

    Args:
        caller: opens the error message.
        dataset: what was passed for it.

    Raises:
        ArgumentTypeError: it is something else; says how to open or make one.
    """
    try:
        dataset.storage, dataset.metadata, dataset.replay_buffer  # noqa: B018 (EAFP)
    except AttributeError:
        text = " ".join(repr(dataset).split())
        raise ArgumentTypeError(
            f"{caller}: expected demonstrations at argument 'dataset', got "
            f"{type(dataset).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
            ". Open a folder or repo id with recipes.open_dataset(...); make one of "
            "steps with DemonstrationDataset(frames, metadata, instructions)."
        ) from None
