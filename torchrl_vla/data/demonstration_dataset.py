"""Demonstrations on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import RandomSampler, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import Compose, Transform

from torchrl_vla.data.frames import frame_statistics, frames_of_rollout
from torchrl_vla.data.row_sampler import RowSampler
from torchrl_vla.schema import (
    EPISODE_KEY,
    INSTRUCTION_KEY,
    IS_LABELED_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ObservationHistory

_METADATA, _INSTRUCTIONS, _FRAMES = "metadata.json", "instructions.json", "frames"
_PROVENANCE = "provenance.json"


def check_folder_is_free(folder: Path, caller: str) -> None:
    """Refuse a folder that has contents; one that is not there is free.

    Raises:
        FileExistsError: it has contents; lists them.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{caller}: expected no dataset at {str(folder)!r}, got "
            f"{sorted(path.name for path in folder.iterdir())}. Choose another folder, "
            "or pass overwrite=True."
        )


def make_frame_buffer(
    storage: TensorStorage,
    batch_size: int,
    steps: Sequence[Transform | None],
    sampler: Sampler | None,
    seed: int | None,
) -> TensorDictReplayBuffer:
    """Make a buffer over frames; i.i.d. frames unless a sampler is given.

    Args:
        storage: of the frames.
        batch_size: frames per sample.
        steps: transforms of the samples, in order; None is left out.
        sampler: None = i.i.d. frames.
        seed: of the sampler; None = TorchRL's own generator.
    """
    found = [step for step in steps if step is not None]
    buffer = TensorDictReplayBuffer(
        storage=storage,
        sampler=RandomSampler() if sampler is None else sampler,
        batch_size=batch_size,
        transform=Compose(*found) if found else None,
    )
    if seed is not None:
        buffer.set_rng(torch.Generator().manual_seed(seed))
    return buffer


def split_episodes(
    caller: str, episodes: torch.Tensor, fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a part of ``fraction`` of the episodes; the rest is the other part.

    Raises:
        ValueError: one part would be empty.
    """
    cut = round(fraction * len(episodes))
    if not 0 < cut < len(episodes):
        raise ValueError(
            f"{caller}.split: expected a fraction that leaves episodes on both sides, "
            f"got {fraction} of {len(episodes)} episodes."
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = episodes[torch.randperm(len(episodes), generator=generator)]
    return shuffled[:cut], shuffled[cut:]


class DemonstrationDataset:
    """Frames of demonstrations, memory-mapped, with what their numbers mean.

    A folder of ``metadata.json`` (with statistics), ``instructions.json``,
    ``provenance.json`` (which run of which purpose recorded it) and ``frames/``, a
    memory-mapped TensorDict of single steps. The metadata is written
    last, so a folder without it is one that was not finished, and is refused.

    Args:
        frames: ``[F]`` steps in the canonical schema, with ``episode_index`` and
            ``frame_index``.
        metadata: what the numbers mean, and their statistics.
        instructions: the texts of the ids in ``frames``.
        provenance: how the frames were made, in what JSON holds.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import collect
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=16)
        >>> folder = tempfile.mkdtemp() + "/reach"
        >>> dataset = collect(env, env.make_expert(), 5, folder=folder, progress=False)
        >>> DemonstrationDataset.from_folder(folder).num_episodes
        5
        >>> dataset.replay_buffer(8).sample()["observation", "image"].shape
        torch.Size([8, 3, 16, 16])
    """

    def __init__(
        self,
        frames: TensorDict,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        self.frames = frames
        self.provenance = dict(provenance or {})
        self.metadata = metadata
        self.instructions = instructions
        #: The frames as a TorchRL storage, for ``ActionChunkTransform(storage=...)``.
        self.storage = TensorStorage(frames)

    @classmethod
    def from_folder(cls, folder: Path | str) -> DemonstrationDataset:
        """Open a folder that :func:`collect` or :meth:`to_folder` wrote.

        Raises:
            FileNotFoundError: there is no such folder.
            SchemaError: it was not finished.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"DemonstrationDataset: expected a folder at {str(folder)!r}, got "
                "nothing. Write one with collect(...) or `torchrl-vla collect`."
            )
        if not (folder / _METADATA).is_file():
            raise SchemaError(
                f"DemonstrationDataset: expected {_METADATA!r} in {str(folder)!r}, got "
                f"{sorted(path.name for path in folder.iterdir())}. It is written "
                "last: the recording was not finished. Collect it again."
            )
        provenance = folder / _PROVENANCE
        return cls(
            TensorDict.load_memmap(folder / _FRAMES),
            RobotDatasetMetadata.from_json(folder / _METADATA),
            InstructionTable.from_json((folder / _INSTRUCTIONS).read_text()),
            json.loads(provenance.read_text()) if provenance.is_file() else None,
        )

    @classmethod
    def from_rollout(
        cls,
        rollout: TensorDictBase,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
    ) -> DemonstrationDataset:
        """Make a dataset, in memory, of the steps of a rollout ``[*B, T]``.

        With :func:`select_successes` it is what a policy learns from its own
        successes. Unlike :func:`collect` it takes what a collector has made anyway;
        :func:`~torchrl_vla.data.frames.frames_of_rollout` says what becomes of episodes
        that the rollout cuts.

        Args:
            rollout: of an environment with ``("next", "success")``.
            metadata: its statistics are kept; those that it lacks are the rollout's.
            instructions: the texts of its ids, or what its texts become ids of.

        Raises:
            MissingKeyError: the rollout lacks what a dataset holds.
            SchemaError: it holds no beginning of an episode.
        """
        frames = frames_of_rollout(rollout, instructions)
        missing = {
            name: statistics
            for name, statistics in frame_statistics(frames).items()
            if getattr(metadata, name) is None
        }
        return cls(frames, replace(metadata, **missing), instructions)

    def to_folder(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the dataset, the metadata last.

        Raises:
            FileExistsError: the folder has contents and ``overwrite`` is False.
        """
        folder = Path(folder)
        if not overwrite:
            check_folder_is_free(folder, "DemonstrationDataset")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _METADATA).unlink(missing_ok=True)
        self.frames.memmap(str(folder / _FRAMES), copy_existing=True)
        (folder / _INSTRUCTIONS).write_text(self.instructions.to_json())
        (folder / _PROVENANCE).write_text(json.dumps(self.provenance, indent=2))
        (folder / _METADATA).write_text(self.metadata.to_json())
        return folder

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_episodes(self) -> int:
        """How many episodes there are."""
        return len(self.frames.get(EPISODE_KEY).unique())

    def replay_buffer(
        self,
        batch_size: int,
        *,
        history_size: int = 1,
        transform: Transform | None = None,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> TensorDictReplayBuffer:
        """Make a buffer over the frames; i.i.d. frames unless a sampler is given.

        Where frames say ``is_labeled``, those without a label are not drawn: their
        actions are no targets. With ``history_size`` above 1, ``observation_history``
        holds that many observations before ``transform`` sees the sample.
        """
        history = None
        if history_size > 1:
            history = ObservationHistory(history_size, storage=self.storage)
        labels = self.frames.get(IS_LABELED_KEY, None)
        if sampler is None and labels is not None:
            sampler = RowSampler(labels.reshape(-1).nonzero().squeeze(-1))
        return make_frame_buffer(
            self.storage, batch_size, [history, transform], sampler, seed
        )

    def select_episodes(self, episodes: torch.Tensor) -> DemonstrationDataset:
        """Return the dataset of some episodes, in memory, with the same metadata.

        Statistics stay those of the whole: a policy trained on a part must act with
        the statistics that it was trained with.
        """
        keep = torch.isin(self.frames.get(EPISODE_KEY), episodes)
        return DemonstrationDataset(
            self.frames[keep], self.metadata, self.instructions, self.provenance
        )

    def split(
        self, fraction: float, seed: int = 0
    ) -> tuple[DemonstrationDataset, DemonstrationDataset]:
        """Split by episode into a part of ``fraction`` and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        episodes = self.frames.get(EPISODE_KEY).unique()
        first, second = split_episodes("DemonstrationDataset", episodes, fraction, seed)
        return self.select_episodes(first), self.select_episodes(second)

    def __repr__(self) -> str:
        rows = self.instructions.rows(self.frames.get(INSTRUCTION_KEY))
        episodes = self.frames.get(EPISODE_KEY)
        lines = [
            f"{type(self).__name__} {self.metadata.dataset_id!r}: "
            f"{self.num_episodes} episodes, {len(self)} frames",
            f"{'episodes':>9} {'frames':>9}  instruction",
        ]
        for row, text in enumerate(self.instructions.texts):
            mine = episodes[rows == row]
            if len(mine):
                lines.append(f"{len(mine.unique()):>9} {len(mine):>9}  {text}")
        return "\n".join(lines)
