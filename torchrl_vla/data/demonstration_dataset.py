"""Demonstration dataset in memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorStorage

from torchrl_vla._internal.durable_files import (
    write_json,
    write_text,
    writing_folder,
)
from torchrl_vla._internal.file_manifest import (
    MANIFEST,
    check_manifest,
    write_manifest,
)
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.data.demonstrations import Demonstrations, check_folder_is_free
from torchrl_vla.data.episode_choice import choose_episodes
from torchrl_vla.data.frame_checks import check_finite_frames
from torchrl_vla.data.label_bounds import (
    Labels,
    bound_labels,
    check_labels_option,
    record_labels,
)
from torchrl_vla.data.mapped_frames import map_frames
from torchrl_vla.data.rollout_frames import frame_statistics, frames_of_rollout
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)

_METADATA, _INSTRUCTIONS, _FRAMES = "metadata.json", "instructions.json", "frames"
_PROVENANCE = "provenance.json"
_OWNER = "DemonstrationDataset"
_REMEDY = "The copy or download was not finished: fetch or collect the dataset again."


class DemonstrationDataset(Demonstrations):
    """Memory-mapped frames of demonstrations with their metadata and instructions.

    A folder holds ``metadata.json`` (with statistics), ``instructions.json``,
    ``provenance.json`` (the run and purpose that recorded it) and ``frames/``, a
    memory-mapped TensorDict of single steps, and ``files.json`` the size and checksum
    of each of these files. The metadata is written last; a folder without it is
    unfinished and is refused, and so is one with a file that was cut off or changed.
    The files are opened read-only: what is written into :attr:`frames` stays in memory.

    Args:
        frames: ``[F]`` steps in the canonical schema, with ``episode_index`` and
            ``frame_index``.
        metadata: names, units and statistics of the numbers in ``frames``.
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
        self.storage = TensorStorage(frames)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        exclude_episodes: Sequence[int] = (),
        verify: bool = False,
    ) -> DemonstrationDataset:
        """Open a folder that :func:`collect` or :meth:`to_folder` wrote.

        Args:
            folder: contains ``metadata.json``.

        Keyword Args:
            exclude_episodes: indices of episodes to leave out; the statistics remain
                those of the whole dataset.
            verify: True = compare the checksums of large files too, which reads them
                whole; False = their sizes, and the checksums of files up to 1 MiB.

        Raises:
            FileNotFoundError: the folder or one of its files does not exist.
            SchemaError: the folder is unfinished, a file was cut off or changed, or an
                action or state is not finite.
            MetadataError: the metadata are damaged.
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
        if (folder / MANIFEST).is_file():  # older folders have none
            check_manifest(_OWNER, folder, _REMEDY, verify=verify)
        provenance = folder / _PROVENANCE
        frames = map_frames(_OWNER, folder / _FRAMES, _REMEDY)
        _check_frames(frames, folder)
        frames = choose_episodes(cls.__name__, frames, exclude=exclude_episodes)
        check_finite_frames(cls.__name__, frames)
        return cls(
            frames,
            RobotDatasetMetadata.from_json(folder / _METADATA),
            InstructionTable.from_json(folder / _INSTRUCTIONS),
            read_json(_OWNER, provenance, dict[str, object], remedy=_REMEDY)
            if provenance.is_file()
            else None,
        )

    @classmethod
    def from_rollout(
        cls,
        rollout: TensorDictBase,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
        *,
        labels: Labels = "clamp",
    ) -> DemonstrationDataset:
        """Make a dataset, in memory, of the steps of a rollout ``[*B, T]``.

        Unlike :func:`collect`, it reuses a rollout that a collector already made.
        With :func:`select_successes` a policy learns from its own successes.
        :func:`~torchrl_vla.data.frames_of_rollout` describes how cut episodes are
        handled.

        Args:
            rollout: of an environment with ``("next", "success")``.
            metadata: its statistics are kept; missing ones are computed.
            instructions: the texts of its ids; texts in the rollout are added.
            labels: what becomes of an action beyond the bounds in the metadata, as in
                :func:`collect`; the number of such frames is in ``provenance``.

        Raises:
            MissingKeyError: the rollout lacks an entry that a dataset holds.
            SchemaError: the rollout does not contain the start of an episode; or an
                action is not finite or, with ``labels="refuse"``, out of bounds.
            ValueError: there is no such choice of ``labels``.
        """
        check_labels_option("from_rollout", labels)
        frames = frames_of_rollout(rollout, instructions)
        action = frames.get(ACTION_KEY)
        bounded, beyond = bound_labels("from_rollout", action, metadata, labels)
        frames.set(ACTION_KEY, bounded)
        computed = frame_statistics(frames)
        if metadata.action_statistics is not None:
            computed["action_statistics"] = metadata.action_statistics
        if metadata.state_statistics is not None:
            computed["state_statistics"] = metadata.state_statistics
        known = record_labels({}, labels, beyond)
        metadata = replace(metadata, **computed)
        return cls(frames, metadata, instructions, known)

    def to_folder(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the dataset whole or not at all, the metadata last.

        Raises:
            FileExistsError: the folder has contents and ``overwrite`` is False.
        """
        folder = Path(folder)
        if not overwrite:
            check_folder_is_free(folder, "DemonstrationDataset")
        with writing_folder(folder, _METADATA) as partial:
            self.frames.memmap(str(partial / _FRAMES), copy_existing=True)
            write_text(partial / _INSTRUCTIONS, self.instructions.to_json())
            write_json(partial / _PROVENANCE, self.provenance)
            write_manifest(partial)
            write_text(partial / _METADATA, self.metadata.to_json())
        return folder

    def select_episodes(self, episodes: torch.Tensor) -> DemonstrationDataset:
        """Return the dataset of some episodes, in memory, with the same metadata."""
        keep = torch.isin(self.frames.get(EPISODE_KEY), episodes)
        return DemonstrationDataset(
            self.frames[keep], self.metadata, self.instructions, self.provenance
        )


def _check_frames(frames: TensorDict, folder: Path) -> None:
    """Refuse frames that no dataset of ours has."""
    numbers = {
        key: frames.get(key, None) for key in (EPISODE_KEY, FRAME_KEY, ACTION_KEY)
    }
    shapes = {
        key: f"{value.dtype} {list(value.shape)}"
        for key, value in numbers.items()
        if torch.is_tensor(value)
    }
    right = {
        key: f"torch.int64 [{frames.batch_size.numel()}]"
        for key in (EPISODE_KEY, FRAME_KEY)
    }
    if frames.ndim != 1 or len(shapes) != 3 or not right.items() <= shapes.items():
        raise SchemaError(
            f"{_OWNER}: expected frames [F] with {[*numbers]} in {str(folder)!r}, the "
            f"numbers of episode and frame as int64 [F], got {frames.batch_size} with "
            f"{shapes}. {_REMEDY}"
        )
