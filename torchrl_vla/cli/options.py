"""Options that several commands share, and their errors."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_vla import recipes
from torchrl_vla.cli import library
from torchrl_vla.errors import VLAError
from torchrl_vla.recipes.environment_options import EnvironmentOptions

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


#: Commands that torchrun may start.
_RANKED = ("train", "finetune")


class OptionError(VLAError, ValueError):
    """Options that make no sense, alone or together."""


def read_json(option: str, text: str) -> dict[str, Any]:
    """Read the JSON object that an option was given.

    Examples:
        >>> read_json("--config", '{"chunk_size": 20}')
        {'chunk_size': 20}
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(
            f"{option}: expected JSON such as '{{\"name\": 1}}', got {text!r}: {error}."
        ) from error
    if not isinstance(value, dict):
        raise OptionError(f"{option}: expected a JSON object, got {text!r}.")
    return value


def check_launch(command: str) -> None:
    """Refuse several processes of a command that does its work in one.

    Args:
        command: its name.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if count > 1 and command not in _RANKED:
        raise OptionError(
            f"{command}: expected one process, got {count} of torchrun. Only "
            f"{' and '.join(_RANKED)} share their work. Start it without torchrun."
        )


def read_result(command: str, path: Path) -> library.EvaluationResult:
    """Read a file that ``evaluate --json`` wrote."""
    try:
        return library.EvaluationResult.from_json(path)
    except (OSError, ValueError) as error:
        why = str(error).removesuffix(".")
        raise OptionError(
            f"{command}: expected a file that `torchrl-vla evaluate --json` wrote at "
            f"{str(path)!r}, got {type(error).__name__}: {why}."
        ) from error


def open_environment(
    options: EnvironmentOptions, seed: int, device: str | None = None, **changes: Any
) -> EnvBase:
    """Make an environment; one that is not known is an error of the command line.

    Args:
        options: of the environment.
        seed: of its episode seeds.
        device: of the policy that acts in it; None = the CPU.
        changes: other values of the options, e.g. ``num_envs``.
    """
    try:
        env = recipes.make_environment(**vars(replace(options, **changes)), seed=seed)
    except ValueError as error:
        raise OptionError(f"--env: {error}") from error
    return library.on_device(env, device)
