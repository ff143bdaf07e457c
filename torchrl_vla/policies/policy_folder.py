"""Folder of a policy: what it was built with, its weights, its instructions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchrl_vla._internal.durable_files import (
    remove,
    write_bytes,
    write_json,
    write_text,
    writing_folder,
)
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.policies.module_description import Describer, Json, build
from torchrl_vla.policies.readable_weights import (
    load_weights,
    plain_class,
    raw_weights,
    readable_weights,
    uncompiled,
)
from torchrl_vla.schema import InstructionTable, PolicySpace, SchemaError, space_of

_CONFIG, _WEIGHTS, _INSTRUCTIONS = "config.json", "weights.pt", "instructions.json"

_REMEDY = "Pass a whole folder that save_policy wrote, or write the policy again."

Policy = TypeVar("Policy", bound=nn.Module)


class _Stored(TypedDict):
    policy: str
    description: dict[str, object]
    space: PolicySpace | None


class Marked(Protocol):
    """What is set on a policy from outside, of whatever class it is."""

    policy_space: PolicySpace | None
    instructions: InstructionTable | None


def write_policy(folder: str | Path, policy: nn.Module) -> None:
    """Write a policy's folder whole or not at all, ``config.json`` last.

    The policy is first rebuilt in memory from what would be written, and compared.

    Args:
        folder: is created if need be.
        policy: its class, constructor arguments, weights and space are written.

    Raises:
        SchemaError: the policy could not be read back, or has parameters without a
            size; nothing is written then.
    """
    config, weights, instructions = _check_written(policy)
    folder = Path(folder)
    with writing_folder(folder, _CONFIG) as partial:
        write_bytes(partial / _WEIGHTS, lambda file: torch.save(weights, file))
        if instructions is not None:
            write_text(partial / _INSTRUCTIONS, instructions.to_json())
        else:
            remove(folder / _INSTRUCTIONS)
        write_json(partial / _CONFIG, config)


def check_writable(policy: nn.Module) -> None:
    """Refuse a policy that :func:`write_policy` could not write.

    Raises:
        SchemaError: says why.
    """
    _check_written(policy)


def read_policy(folder: str | Path, cls: type[Policy] | None = None) -> Policy:
    """Rebuild a policy from its folder, on the CPU.

    Args:
        folder: written by :func:`write_policy`.
        cls: the class that is expected; None = any.

    Raises:
        FileNotFoundError: the folder holds no complete policy.
        SchemaError: it holds a policy of another class, the weights do not fit, or a
            file is damaged.
    """
    folder = Path(folder)
    caller = "load_policy" if cls is None else f"{cls.__name__}.from_folder"
    config = _read_config(folder, caller)
    if cls is not None and config["policy"] != cls.__name__:
        raise SchemaError(
            f"{caller}: expected a {cls.__name__} in {folder}, got a "
            f"{config['policy']}. Read it with {config['policy']}.from_folder, or any "
            "policy with load_policy."
        )
    table = None
    if (folder / _INSTRUCTIONS).is_file():
        table = InstructionTable.from_json(folder / _INSTRUCTIONS)
    weights = read_tensors(caller, folder / _WEIGHTS, dict[str, object], remedy=_REMEDY)
    origin = Origin.of_file(caller, folder / _CONFIG, _REMEDY)
    with origin.reading("the arguments of the policy", "description"):
        policy = build(config["description"], table)
    try:
        load_weights(policy, cast("dict[str, Tensor]", weights))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise SchemaError(
            f"{caller}: expected weights of the policy that {_CONFIG} describes, got "
            f"others in {folder / _WEIGHTS}. PyTorch says: {error}"
        ) from error
    cast(Marked, policy).policy_space = config["space"]
    return cast(Policy, policy)


def _read_config(folder: Path, caller: str) -> _Stored:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{caller}: expected {_CONFIG} in {folder}, got none. Write the policy "
            "with save_policy; an interrupted write leaves none either."
        )
    return read_json(caller, path, _Stored, remedy=_REMEDY)


def _check_written(
    policy: nn.Module,
) -> tuple[dict[str, Json], dict[str, Tensor], InstructionTable | None]:
    """Return what is to be written, after it was read back in memory."""
    policy = uncompiled(policy)
    name = plain_class(policy).__name__
    caller = f"save_policy({name})"
    if any(is_lazy(parameter) for parameter in policy.parameters()):
        raise SchemaError(
            f"{caller}: expected complete parameters, got some whose size is still "
            "unknown. Build the policy with state_dim, or call it once."
        )
    describer = Describer(caller)
    description = describer.describe(policy)
    description = json.loads(json.dumps(description))
    weights = _read_back(policy, description, describer)
    space = space_of(policy)
    config = {
        "policy": name,
        "description": description,
        "space": None if space is None else asdict(space),
    }
    return config, weights, describer.instructions


def _read_back(
    policy: nn.Module, description: dict, describer: Describer
) -> dict[str, Tensor]:
    """Rebuild the policy in memory; return weights that it takes and gives back."""
    caller = describer.caller
    with torch.random.fork_rng(devices=[]):
        try:
            again = build(description, describer.instructions)
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"{caller}: expected to build it again from {description}, got "
                f"{type(error).__name__}: {error}. Let its config, or the attributes "
                "of its constructor's parameters, hold what the constructor takes."
            ) from error
    weights = raw_weights(policy)
    if set(weights) != set(raw_weights(again)):
        weights = readable_weights(policy)
    weights = {key: value.detach().cpu() for key, value in weights.items()}
    try:
        load_weights(again, weights)
    except RuntimeError as error:
        raise SchemaError(
            f"{caller}: expected to load its weights into one built again from its "
            f"constructor's arguments, got: {error}. Let the constructor make every "
            "part that the policy has."
        ) from error
    got = raw_weights(again)
    different = sorted(
        key for key, value in weights.items() if not _same(value, got.get(key))
    )
    if different:
        raise SchemaError(
            f"{caller}: expected equal weights after reading them back, got others at "
            f"{different}."
        )
    return weights


def _same(value: Tensor, other: Tensor | None) -> bool:
    if other is None or other.dtype != value.dtype:
        return False
    return torch.equal(value.nan_to_num(), other.nan_to_num())
