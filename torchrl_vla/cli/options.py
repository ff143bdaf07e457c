"""What the subcommands read from the command line beyond single values."""

from __future__ import annotations

import json
from typing import Any

from torchrl.envs import EnvBase

from torchrl_vla.recipes import make_environment
from torchrl_vla.schema import VLAError


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


def open_environment(name: str, **options: Any) -> EnvBase:
    """Make an environment; one that is not known is an error of the command line."""
    try:
        return make_environment(name, **options)
    except ValueError as error:
        raise OptionError(f"--env: {error}") from error
