"""Demonstration dataset in memory-mapped files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorStorage

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.data.demonstrations import Demonstrations, check_folder_is_free
from torchrl_vla.data.label_bounds import Labels, bound_labels, check_labels_option
from torchrl_vla.data.rollout_frames import frame_statistics, frames_of_rollout
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)

_METADATA, _INSTRUCTIONS, _FRAMES = "metadata.json", "instructions.json", "frames"
_PROVENANCE = "provenance.json"


class DemonstrationDataset(Demonstrations):
    """Memory-mapped frames of demonstrations with their metadata and instructions.

    A folder holds ``metadata.json`` (with statistics), ``instructions.json``,
    ``provenance.json`` (the run and purpose that recorded it) and ``frames/``, a
    memory-mapped TensorDict of single steps. The metadata is written last; a folder
    without it is unfinished and is refused.

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
    def from_folder(cls, folder: Path | str) -> DemonstrationDataset:
        """Open a folder that :func:`collect` or :meth:`to_folder` wrote.

        Raises:
            FileNotFoundError: the folder does not exist.
            SchemaError: the folder is unfinished.
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
        known = {"labels": {"beyond_bounds": labels, "frames": beyond}}
        metadata = replace(metadata, **computed)
        return cls(frames, metadata, instructions, known if beyond else None)

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
        write_text(folder / _INSTRUCTIONS, self.instructions.to_json())
        write_text(folder / _PROVENANCE, json.dumps(self.provenance, indent=2))
        write_text(folder / _METADATA, self.metadata.to_json())
        return folder

    def select_episodes(self, episodes: torch.Tensor) -> DemonstrationDataset:
        """Return the dataset of some episodes, in memory, with the same metadata."""
        keep = torch.isin(self.frames.get(EPISODE_KEY), episodes)
        return DemonstrationDataset(
            self.frames[keep], self.metadata, self.instructions, self.provenance
        )
