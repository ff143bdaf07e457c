"""Folder of a policy: what it was built with, its weights, its instructions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.policies.module_description import Describer, Json, build
from torchrl_vla.policies.readable_weights import (
    load_weights,
    plain_class,
    raw_weights,
    readable_weights,
    uncompiled,
)
from torchrl_vla.schema import (
    InstructionTable,
    PolicySpace,
    RobotDatasetMetadata,
    SchemaError,
    space_of,
)

_CONFIG, _WEIGHTS, _INSTRUCTIONS = "config.json", "weights.pt", "instructions.json"

Policy = TypeVar("Policy", bound=nn.Module)


class Marked(Protocol):
    """What is set on a policy from outside, of whatever class it is."""

    policy_space: PolicySpace | None
    training_metadata: RobotDatasetMetadata | None
    instructions: InstructionTable | None


def write_policy(folder: str | Path, policy: nn.Module) -> None:
    """Write a policy's folder; ``config.json`` comes last, when the rest is there.

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    partial = folder / f".{_WEIGHTS}.partial"
    torch.save(weights, partial)
    partial.replace(folder / _WEIGHTS)
    (folder / _INSTRUCTIONS).unlink(missing_ok=True)
    if instructions is not None:
        write_text(folder / _INSTRUCTIONS, instructions.to_json())
    write_text(folder / _CONFIG, json.dumps(config, indent=2))


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
        SchemaError: it holds a policy of another class, or the weights do not fit.
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
        text = (folder / _INSTRUCTIONS).read_text(encoding="utf-8")
        table = InstructionTable.from_json(text)
    weights = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
    policy = build(config["description"], table)
    try:
        load_weights(policy, weights)
    except RuntimeError as error:
        raise SchemaError(
            f"{caller}: expected weights of the policy that {_CONFIG} describes, got "
            f"others in {folder / _WEIGHTS}. PyTorch says: {error}"
        ) from error
    space = config["space"]
    marked = cast(Marked, policy)
    marked.policy_space = None if space is None else PolicySpace(**space)
    return cast(Policy, policy)


def _read_config(folder: Path, caller: str) -> dict:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{caller}: expected {_CONFIG} in {folder}, got none. Write the policy "
            "with save_policy; an interrupted write leaves none either."
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    missing = {"policy", "description", "space"} - set(config)
    if missing:
        raise SchemaError(
            f"{caller}: expected {sorted(missing)} in {path}, got {sorted(config)}. "
            "Pass a folder that save_policy wrote."
        )
    return config


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
