"""Folders of sharded states (``torch.distributed.checkpoint``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

#: Parts of a training that are sharded with the policy.
SHARDED_PARTS = ("policy", "optimizer", "average")

#: What is the same on every rank, beside the shards.
PLAIN_FILE = "plain.pt"

_PREFIX = "training_state-"


class Restorable(Protocol):
    """Module, optimizer, schedule: what has a state of its own."""

    def state_dict(self) -> dict[str, object]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, object], /) -> object:
        """Take a state over."""


class Average(Protocol):
    """Moving average of the weights."""

    def sharded_state(self) -> dict[str, Any]:
        """Return the means, sharded as the weights are; loaded in place."""


def sharded_folder(folder: Path, iteration: int) -> Path:
    """Return where the sharded state of an iteration is."""
    return folder / f"{_PREFIX}{iteration:08d}"


def sharded_folders(folder: Path) -> list[Path]:
    """Return the folders of sharded states, the latest last."""
    return sorted(folder.glob(_PREFIX + "*"))


def write_shards(folder: Path, parts: Mapping[str, Restorable], iteration: int) -> None:
    """Write this rank's shards of the policy, the optimizer and the average."""
    dcp.save(_collect(parts, iteration), checkpoint_id=folder)


def read_shards(folder: Path, parts: Mapping[str, Restorable], iteration: int) -> None:
    """Read the state of the policy, the optimizer and the average, resharded."""
    state = _collect(parts, iteration)
    with warnings.catch_warnings():  # that there is no process group, which is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=folder)
    policy = cast(nn.Module, parts["policy"])
    set_model_state_dict(policy, state["policy"])
    if "optimizer" in state:
        optimizer = cast(Optimizer, parts["optimizer"])
        set_optimizer_state_dict(policy, optimizer, state["optimizer"])


def _collect(parts: Mapping[str, Restorable], iteration: int) -> dict[str, Any]:
    policy = cast(nn.Module, parts["policy"])
    state: dict[str, Any] = {"policy": get_model_state_dict(policy)}
    if iteration:  # PyTorch takes a step to make the state of a new optimizer
        optimizer = cast(Optimizer, parts["optimizer"])
        state["optimizer"] = get_optimizer_state_dict(policy, optimizer)
    if "average" in parts:
        state["average"] = cast(Average, parts["average"]).sharded_state()
    return state
