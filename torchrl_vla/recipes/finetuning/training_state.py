"""What a training needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchrl_vla.schema import VLAError

_FILE = "training_state.pt"


class ResumeError(VLAError, ValueError):
    """A training cannot go on from what is in its folder."""


class TrainingState:
    """Write and read the state of a training, one whole file at a time.

    The file is replaced only by a complete one, so a process killed while writing
    leaves the one before. Random numbers need no state: an iteration draws from seeds
    of its own.

    Args:
        folder: of the training.
        parts: modules and optimizers by name, restored in place.
        settings: what must be equal for the training to go on, as plain values.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, nn.Module | Optimizer],
        settings: dict[str, Any],
    ) -> None:
        self.path = folder / _FILE
        self.parts = parts
        self.settings = settings

    def write(self, iteration: int) -> None:
        """Write the state after an iteration."""
        state = {
            "iteration": iteration,
            "settings": self.settings,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        complete = self.path.with_suffix(".writing")
        with complete.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        complete.replace(self.path)

    def read(self) -> int | None:
        """Restore the state; return its iteration, None where there is no file.

        Raises:
            ResumeError: the training was begun with other settings.
        """
        if not self.path.exists():
            return None
        state = torch.load(self.path, weights_only=True)
        then = state["settings"]
        differing = {
            name: (then.get(name), self.settings.get(name))
            for name in sorted(then.keys() | self.settings.keys())
            if then.get(name) != self.settings.get(name)
        }
        if differing:
            raise ResumeError(
                f"TrainingState: expected the settings that {str(self.path.parent)!r} "
                "was begun with, got others (name: (then, now)): "
                f"{differing}. Pass the same ones to resume, or another folder to "
                "begin anew."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        return state["iteration"]
