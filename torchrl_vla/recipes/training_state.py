"""State of a training in its folder, from which it resumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from torchrl_vla._internal.durable_files import remove, write_bytes
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.distributed import Ranks
from torchrl_vla.distributed.shard_files import (
    PLAIN_FILE,
    SHARDED_PARTS,
    Restorable,
    read_shards,
    sharded_folders,
)
from torchrl_vla.errors import ResumeError

STATE_FILE = "training_state.pt"
_REMEDY = "Begin the training again in another folder."


class TrainingState:
    """Write and read the state of a training, one whole file at a time.

    The file is replaced only by a complete one, so a process that is killed while
    writing leaves the one before.

    Args:
        folder: of the training.
        parts: modules, optimizers and others by name, restored in place.
        settings: what must be equal for the training to be resumed, as plain values.
        initial_weights: hash of the policy's weights before the first step.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Restorable],
        settings: Mapping[str, object],
        initial_weights: str = "",
    ) -> None:
        self.path = folder / STATE_FILE
        self.parts = dict(parts)
        self.settings = dict(settings)
        self.initial_weights = initial_weights

    def write(self, iteration: int) -> None:
        """Write the state after an iteration; the first rank does."""
        if not Ranks.current().is_first:
            return
        state = self._values(iteration, self.parts)
        write_bytes(self.path, lambda file: torch.save(state, file))
        for folder in sharded_folders(self.path.parent):
            remove(folder)

    def _values(
        self, iteration: int, parts: Mapping[str, Restorable]
    ) -> dict[str, object]:
        return {
            "iteration": iteration,
            "settings": self.settings,
            "initial_weights": self.initial_weights,
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }

    def read(self) -> int | None:
        """Restore the state; return its iteration, None where there is no file.

        Raises:
            ResumeError: the training was begun with other settings, or from a policy
                with other weights; or the file is damaged.
        """
        folders = sharded_folders(self.path.parent)
        path = folders[-1] / PLAIN_FILE if folders else self.path
        if not path.exists():
            return None
        caller, error = "TrainingState", ResumeError
        state = read_tensors(caller, path, _State, remedy=_REMEDY, error=error)
        self._check(state)
        origin = Origin.of_file(caller, path, _REMEDY, error)
        for name in self.parts.keys() - set(SHARDED_PARTS if folders else ()):
            with origin.reading("a state that fits", name):
                self.parts[name].load_state_dict(state["parts"][name])
        if folders:
            with origin.reading("shards of the policy and its optimizer"):
                read_shards(folders[-1], self.parts, state["iteration"])
        return state["iteration"]

    def _check(self, state: _State) -> None:
        """Refuse a state of other settings or another policy."""
        then = state["settings"]
        differing = {
            name: (then.get(name), self.settings.get(name))
            for name in sorted(then.keys() | self.settings.keys())
            if then.get(name) != self.settings.get(name)
        }
        folder = str(self.path.parent)
        if differing:
            raise ResumeError(
                f"TrainingState: expected the settings that {folder!r} was begun with, "
                f"got others (name: (then, now)): {differing}. Pass the same ones to "
                "resume, or another folder to begin a new training."
            )
        if state["initial_weights"] != self.initial_weights:
            raise ResumeError(
                f"TrainingState: expected the policy that {folder!r} was begun from, "
                "got one with other initial weights. Pass the policy as it was before "
                "the first step to resume, or another folder to begin a new training."
            )


class _State(TypedDict):
    iteration: int
    settings: dict[str, object]
    initial_weights: str
    parts: dict[str, Any]


def check_training_folder(
    caller: str, folder: Path, own_names: Collection[str] = ()
) -> None:
    """Refuse a folder that holds anything but an unfinished training.

    Args:
        caller: opens the error message.
        folder: that a training is to write to.
        own_names: further files and folders that such a training writes.

    Raises:
        FileExistsError: it holds a policy, a dataset or something else; lists it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(
            f"{caller}: expected a folder at {str(folder)!r}, got a file."
        )
    names = {path.name for path in folder.iterdir()}
    if STATE_FILE in names or sharded_folders(folder):
        return
    foreign = sorted(
        name for name in names if name not in own_names and ".partial" not in name
    )
    if foreign:
        raise FileExistsError(
            f"{caller}: expected a new folder, an empty one or one of an unfinished "
            f"training at {str(folder)!r}, got {foreign[:8]}. Nothing was written. "
            "Choose another folder."
        )


def finish_training(folder: Path | str) -> None:
    """Remove the state of a finished training, once its policy is stored."""
    remove(Path(folder) / STATE_FILE)
    for sharded in sharded_folders(Path(folder)):
        remove(sharded)
