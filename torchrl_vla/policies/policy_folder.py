"""A policy on disk: its arguments, its weights, its instructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchrl_vla.schema import InstructionTable

_CONFIG, _WEIGHTS, _INSTRUCTIONS = "config.json", "weights.pt", "instructions.json"

Policy = TypeVar("Policy", bound=nn.Module)


def write_policy(
    folder: str | Path,
    policy: nn.Module,
    config: dict[str, Any],
    instructions: InstructionTable | None,
) -> None:
    """Write a policy's folder; ``config.json`` comes last, when the rest is there.

    Args:
        folder: is created if need be.
        policy: whose state dict is written.
        config: the constructor's arguments, as JSON can hold them.
        instructions: the table, if the policy has one.

    Raises:
        ValueError: the policy has parameters without a size yet.
    """
    if any(is_lazy(parameter) for parameter in policy.parameters()):
        raise ValueError(
            f"{type(policy).__name__}.to_folder: expected complete parameters, got "
            "some whose size is still unknown. Build the policy with state_dim=..., or "
            "call it once."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    torch.save(policy.state_dict(), folder / _WEIGHTS)
    (folder / _INSTRUCTIONS).unlink(missing_ok=True)
    if instructions is not None:
        (folder / _INSTRUCTIONS).write_text(instructions.to_json(), encoding="utf-8")
    payload = {"policy": type(policy).__name__, "arguments": config}
    (folder / _CONFIG).write_text(json.dumps(payload, indent=2), encoding="utf-8")


def read_policy(
    folder: str | Path,
    cls: type[Policy],
    parsers: dict[str, Callable[[Any], Any]] | None = None,
    **parts: nn.Module,
) -> Policy:
    """Rebuild a policy from its folder, on the CPU.

    Args:
        folder: written by :func:`write_policy`.
        cls: the policy's class.
        parsers: make an argument out of its JSON, by name; they are called for the
            arguments that the folder has.
        **parts: constructor arguments that are modules; they must be in the state in
            which they were when the policy was written.

    Raises:
        FileNotFoundError: the folder holds no complete policy.
        ValueError: it holds a policy of another class, a part differs, or the weights
            do not fit.
    """
    folder = Path(folder)
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{cls.__name__}.from_folder: expected {_CONFIG} in {folder}, got none. "
            "Write the policy with to_folder; an interrupted write leaves none either."
        )
    payload = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if payload["policy"] != cls.__name__:
        raise ValueError(
            f"{cls.__name__}.from_folder: expected a {cls.__name__} in {folder}, got a "
            f"{payload['policy']}. Read it with {payload['policy']}.from_folder."
        )
    arguments = {
        name: (parsers or {}).get(name, _tuples)(value)
        for name, value in payload["arguments"].items()
    }
    table = None
    if (folder / _INSTRUCTIONS).is_file():
        text = (folder / _INSTRUCTIONS).read_text(encoding="utf-8")
        table = InstructionTable.from_json(text)
    weights = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        _check_part(cls, name, part, weights)
    policy = cls(**arguments, **parts, instructions=table)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        described = [_CONFIG, *(f"argument {name!r}" for name in parts)]
        raise ValueError(
            f"{cls.__name__}.from_folder: expected weights of the policy that "
            f"{' and '.join(described)} describe, got others in {folder / _WEIGHTS}. "
            f"PyTorch says: {error}"
        ) from error
    return policy


def _check_part(
    cls: type, name: str, part: nn.Module, weights: dict[str, Tensor]
) -> None:
    prefix = f"{name}."
    saved = {key[len(prefix) :] for key in weights if key.startswith(prefix)}
    state = part.state_dict()
    different = saved ^ set(state)
    different |= {
        key
        for key in saved & set(state)
        if not torch.equal(state[key].cpu(), weights[prefix + key])
    }
    if different:
        raise ValueError(
            f"{cls.__name__}.from_folder: expected at argument {name!r} what the "
            f"policy was written with, got another {sorted(different)}. With another "
            "one the same tokens are other actions."
        )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def policy_class_of(folder: str | Path) -> str:
    """Return the name of the class of the policy in a folder.

    Raises:
        FileNotFoundError: the folder holds no complete policy.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"policy_class_of: expected {_CONFIG} in {folder}, got none. Write the "
            "policy with to_folder; an interrupted write leaves none either."
        )
    return json.loads(path.read_text(encoding="utf-8"))["policy"]
