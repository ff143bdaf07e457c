"""Inspection of a path: dataset, checkpoint, evaluation or training."""

from __future__ import annotations

from pathlib import Path

from torchrl_vla.diagnosis.checkpoint_inspection import (
    inspect_evaluation,
    inspect_lerobot_checkpoint,
    inspect_own_checkpoint,
    inspect_training,
)
from torchrl_vla.diagnosis.dataset_inspection import (
    inspect_hdf5,
    inspect_lerobot_dataset,
    inspect_own_dataset,
)
from torchrl_vla.diagnosis.inspection import Inspection, reading, unreadable
from torchrl_vla.policies import is_lerobot_folder
from torchrl_vla.recipes.training_state import STATE_FILE

_FILES = {
    ".json": ("evaluation", inspect_evaluation),
    ".hdf5": ("HDF5 file", inspect_hdf5),
    ".h5": ("HDF5 file", inspect_hdf5),
}
#: What lies in a folder, what that makes it, and what reads it; the first one counts.
_FOLDERS = (
    ("policy", "checkpoint", inspect_own_checkpoint),
    (STATE_FILE, "training", inspect_training),
    ("meta", "LeRobot dataset", inspect_lerobot_dataset),
    ("UNFINISHED.txt", "LeRobot dataset", inspect_lerobot_dataset),
    ("frames", "demonstration dataset", inspect_own_dataset),
    ("instructions.json", "demonstration dataset", inspect_own_dataset),
    ("log.csv", "training", inspect_training),
)


def inspect_path(path: Path | str) -> Inspection:
    """Say what a file or folder is, what it holds, and every problem with a remedy.

    It takes datasets (ours, LeRobot's v2.1 and v3.0, HDF5 files of robomimic's
    layout), checkpoints (ours and LeRobot's), evaluations, and folders of trainings.
    What cannot be read is an inspection, too: its one problem is the reader's error.

    Args:
        path: file or folder.

    Examples:
        >>> inspect_path("/no/such/folder").exit_code
        2
    """
    path = Path(path).expanduser()
    if path.is_file():
        known = _FILES.get(path.suffix)
        if known is not None:
            return reading(path, *known)
    elif path.is_dir():
        if is_lerobot_folder(path):
            return reading(path, "LeRobot checkpoint", inspect_lerobot_checkpoint)
        for name, kind, inspect in _FOLDERS:
            if (path / name).exists():
                return reading(path, kind, inspect)
    return unreadable(path, "unknown", _unknown(path))


def _unknown(path: Path) -> Exception:
    wanted = (
        "a dataset (ours, LeRobot's, .hdf5), a checkpoint, an evaluation (.json) or "
        "the folder of a training"
    )
    if not path.exists():
        return FileNotFoundError(f"expected {wanted}, got nothing at {str(path)!r}")
    there = path.name
    if path.is_dir():
        there = str(sorted(entry.name for entry in path.iterdir())[:8])
    return ValueError(f"expected {wanted}, got {there}")
