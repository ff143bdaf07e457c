"""Folder of a policy around another one, which lies in a folder of its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypedDict, cast

import torch
from torch import Tensor, nn

from torchrl_vla._internal.durable_files import (
    write_bytes,
    write_json,
    write_text,
    writing_folder,
)
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.policies.module_description import (
    Describer,
    Json,
    decode,
    reference_to,
    resolve,
)
from torchrl_vla.schema import InstructionTable, SchemaError

_STEERING, _WEIGHTS, _TABLE = "steering.json", "weights.pt", "instructions.json"
_INSIDE = "policy"
_REMEDY = "Pass a whole folder that save_policy wrote, or write the policy again."


class _Stored(TypedDict):
    policy: str
    arguments: dict[str, object]


class HasInstructions(Protocol):
    """A module with the table that gives instruction ids their texts."""

    instructions: InstructionTable | None

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights."""


class Writes(Protocol):
    """A policy that writes its own folder."""

    def to_folder(self, folder: str | Path) -> None:
        """Write the policy."""


def is_steering_folder(folder: Path) -> bool:
    """Return whether a folder holds a policy around another one."""
    return (folder / _STEERING).is_file()


def describe_steering(
    policy: object, config: dict[str, object]
) -> tuple[_Stored, InstructionTable | None]:
    """Return the class and its constructor's arguments but the policy inside.

    Args:
        policy: around another one.
        config: the constructor's arguments.

    Raises:
        SchemaError: an argument cannot be written.
    """
    describer = Describer(f"save_policy({type(policy).__name__})")
    arguments: dict[str, Json] = {
        name: describer.encode(value, f"{type(policy).__name__}({name}=)")
        for name, value in config.items()
        if name != _INSIDE
    }
    stored = {
        "policy": reference_to(type(policy), describer.caller),
        "arguments": json.loads(json.dumps(arguments)),
    }
    return cast(_Stored, stored), describer.instructions


def write_steering(
    folder: Path, policy: HasInstructions, config: dict[str, object], inside: Writes
) -> None:
    """Write a policy's folder, with the policy inside below it.

    Args:
        folder: is created if need be.
        policy: around another one.
        config: the constructor's arguments.
        inside: the other one, of any format.
    """
    stored, table = describe_steering(policy, config)
    # Not every format of the policy inside keeps its own.
    table = policy.instructions if table is None else table
    weights = {
        name: value.detach().cpu()
        for name, value in policy.state_dict().items()
        if not name.startswith(f"{_INSIDE}.")
    }
    with writing_folder(folder, _STEERING) as partial:
        inside.to_folder(partial / _INSIDE)
        write_bytes(partial / _WEIGHTS, lambda file: torch.save(weights, file))
        if table is not None:
            write_text(partial / _TABLE, table.to_json())
        write_json(partial / _STEERING, stored)


def read_steering(folder: Path, load: Callable[[Path], nn.Module]) -> nn.Module:
    """Rebuild what :func:`write_steering` wrote, on the CPU.

    Args:
        folder: of the policy.
        load: reads the policy inside.

    Raises:
        SchemaError: the class is not there, a file is damaged, or weights do not fit.
    """
    caller = "load_policy"
    stored = read_json(caller, folder / _STEERING, _Stored, remedy=_REMEDY)
    table = None
    if (folder / _TABLE).is_file():
        table = InstructionTable.from_json(folder / _TABLE)
    cls = resolve(stored["policy"], caller)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise SchemaError(
            f"{caller}: expected an nn.Module at {stored['policy']!r}, got {cls!r}."
        )
    origin = Origin.of_file(caller, folder / _STEERING, _REMEDY)
    with origin.reading("the arguments of the policy", "arguments"):
        arguments = {
            name: decode(cast(Json, value), table)
            for name, value in stored["arguments"].items()
        }
        policy = cls(policy=load(folder / _INSIDE), **arguments)
    weights = read_tensors(caller, folder / _WEIGHTS, dict[str, object], remedy=_REMEDY)
    own = {n for n in policy.state_dict() if not n.startswith(f"{_INSIDE}.")}
    with Origin.of_file(caller, folder / _WEIGHTS, _REMEDY).reading(
        "the weights of the policy"
    ):
        if own != weights.keys():
            raise KeyError(*sorted(own ^ weights.keys())[:4])
        policy.load_state_dict(cast("dict[str, Tensor]", weights), strict=False)
    if table is not None:
        cast(HasInstructions, policy).instructions = table
    return policy
