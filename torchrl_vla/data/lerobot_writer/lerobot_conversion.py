"""Conversion of datasets, replay buffers and rollouts to LeRobot datasets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.data import ReplayBuffer
from tqdm import tqdm

from torchrl_vla._internal.durable_files import remove
from torchrl_vla.data.demonstrations import (
    Demonstrations,
    check_folder_is_free,
)
from torchrl_vla.data.label_bounds import refuse_beyond
from torchrl_vla.data.lerobot import LeRobotExperienceReplay
from torchrl_vla.data.lerobot_writer.find_episodes import find_episodes
from torchrl_vla.data.lerobot_writer.frame_schema import NUMBERED
from torchrl_vla.data.lerobot_writer.lerobot_writer import LeRobotWriter
from torchrl_vla.data.lerobot_writer.recording_journal import (
    INFO,
    NOTE,
    PARTS,
    RECORDING,
)
from torchrl_vla.data.lerobot_writer.video_encoder import VideoEncoding
from torchrl_vla.schema import (
    ACTION_KEY,
    INSTRUCTION_KEY,
    InstructionTable,
    MetadataError,
    RobotDatasetMetadata,
)

_CALLER = "write_lerobot"


def write_lerobot(
    data: Demonstrations | ReplayBuffer | TensorDictBase,
    folder: Path | str,
    *,
    metadata: RobotDatasetMetadata | None = None,
    instructions: InstructionTable | None = None,
    images: Literal["video", "png"] | VideoEncoding = "video",
    extra_keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write demonstrations, a buffer or a rollout as a LeRobot v3.0 dataset.

    Episodes are sorted by ``episode_index`` and their frames by ``frame_index``, and
    numbered from 0; an episode with missing frames is refused. A rollout ``[*B, T]``
    without these entries is cut after ``("next", "done")``, before ``is_init`` and at
    its end, which ends an episode.

    **Reads** robot space, like :class:`LeRobotWriter`. Of a buffer, the storage is read
    without the buffer's transforms, which lead to model space.

    Args:
        data: dataset, replay buffer of TensorDicts, or steps.
        folder: of the new dataset.

    Keyword Args:
        metadata: of the robot; None = those of ``data``, which then must be a dataset.
        instructions: for instructions that are ids; None = those of the dataset.
        images: ``"video"``, a :class:`VideoEncoding` or ``"png"``. Images from a video
            lose quality when they are encoded again, except with
            ``VideoEncoding.lossless()``.
        extra_keys: further entries to write; None = all entries of a dataset, and no
            further entries of other data.
        overwrite: True = replace a LeRobot dataset in the folder once the new one is
            finished.
        progress: True = show a progress bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder has contents.
        MissingKeyError: no entry marks the start of episodes.
        SchemaError: frames of an episode are missing or duplicated, or actions lie
            beyond the bounds that are declared.
        MetadataError: there are no metadata.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=32, seed=0)
        >>> rollout = env.rollout(5, env.make_expert(), break_when_any_done=False)
        >>> folder = write_lerobot(
        ...     rollout,
        ...     tempfile.mkdtemp() + "/reach",
        ...     metadata=env.metadata,
        ...     instructions=env.instructions,
        ...     progress=False,
        ... )
        >>> sorted(path.name for path in folder.iterdir())
        ['data', 'meta', 'videos']
    """
    folder = Path(folder)
    if isinstance(data, LeRobotExperienceReplay):
        data = data.dataset
    if isinstance(data, Demonstrations):
        metadata = data.metadata if metadata is None else metadata
        instructions = data.instructions if instructions is None else instructions
        refuse_beyond(_CALLER, data.frames, metadata)
        if extra_keys is None:
            extra_keys = _other_keys(data.frames)
    if metadata is None:
        raise MetadataError(
            f"{_CALLER}: expected metadata=... for data of type {type(data).__name__}, "
            "got None. Pass that of the environment: env.metadata."
        )
    target = folder
    if overwrite:
        target = _beside(folder)
    else:
        check_folder_is_free(folder, _CALLER)
    episodes, read = find_episodes(data)
    try:
        with LeRobotWriter(
            target,
            metadata=metadata,
            instructions=instructions,
            images=images,
            extra_keys=extra_keys or (),
        ) as writer:
            for rows in tqdm(episodes, desc="write", unit="ep", disable=not progress):
                episode = read(rows)
                if episode.get(ACTION_KEY, None) is not None:
                    refuse_beyond(_CALLER, episode, metadata)
                writer.add_episode(episode)
        if overwrite:
            _replace(folder, target)
    finally:
        if target != folder:
            remove(target)
        elif not (folder / INFO).is_file():
            _remove_dataset(folder)  # remove a partial copy
    return folder


def _other_keys(frames: TensorDictBase) -> list[NestedKey]:
    known = (*NUMBERED, INSTRUCTION_KEY)
    keys = [unravel_key(key) for key in frames.keys(True, True)]
    return [key for key in keys if key not in known]


def _beside(folder: Path) -> Path:
    """Create a folder next to the one to be replaced."""
    is_dataset = (folder / INFO).is_file() or (folder / RECORDING).is_dir()
    if folder.is_dir() and any(folder.iterdir()) and not is_dataset:
        raise FileExistsError(
            f"{_CALLER}: expected a LeRobot dataset to replace at {str(folder)!r}, got "
            f"{sorted(path.name for path in folder.iterdir())}. Choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))


def _replace(folder: Path, source: Path) -> None:
    """Replace a dataset by another; unrelated files in the folder remain."""
    folder.mkdir(exist_ok=True)
    _remove_dataset(folder)
    for part in PARTS:  # with meta/, which makes it a dataset, last
        if (source / part).is_dir():
            shutil.move(source / part, folder / part)


def _remove_dataset(folder: Path) -> None:
    for part in (INFO, *PARTS, RECORDING, NOTE):
        remove(folder / part)
