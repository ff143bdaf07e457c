"""Objects of the user's own by ``module:name``, and calls that pass what they take."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import TypeVar

from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.errors import NamedObjectError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Result = TypeVar("Result")


def is_named_object(text: str) -> bool:
    """Return whether a text has the form ``module:name``.

    Examples:
        >>> is_named_object("my_robot.envs:make_env"), is_named_object("tabletop")
        (True, False)
    """
    return _NAME.fullmatch(text) is not None


def make_current_directory_importable() -> None:
    """Let modules of the current directory be imported, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def import_named(caller: str, text: str) -> Callable[..., object]:
    """Import a function or class by ``module:name``.

    The current directory is importable, as it is for ``python -m``.

    Args:
        caller: opens the error message.
        text: e.g. ``"my_robot:make_env"``.

    Raises:
        NamedObjectError: the module cannot be imported, or has no such callable.

    Examples:
        >>> import_named("--env", "fractions:Fraction")(1)
        Fraction(1, 1)
    """
    module_name, _, name = text.partition(":")
    make_current_directory_importable()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NamedObjectError(
            f"{caller}: expected an importable module in {text!r}, got "
            f"{type(error).__name__}: {error}. Run the command in the folder that "
            "holds it, or install it."
        ) from error
    found = vars(module).get(name)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise NamedObjectError(
            f"{caller}: expected a function or class {name!r} in {module_name!r}, got "
            f"{'nothing' if found is None else type(found).__name__}."
            f"{did_you_mean(name, known)}"
        )
    return found


def call_with_accepted(function: Callable[..., Result], **available: object) -> Result:
    """Call a function with those of the arguments that it declares by name.

    Args:
        function: the user's; ``**options`` takes all.
        available: what can be passed.

    Examples:
        >>> call_with_accepted(lambda seed: seed + 1, seed=1, num_envs=4)
        2
    """
    return function(**{k: x for k, x in available.items() if accepts(function, k)})


def accepts(function: Callable[..., object], name: str) -> bool:
    """Return whether a function takes an argument by name; ``**options`` takes all.

    Examples:
        >>> accepts(lambda seed: seed, "seed"), accepts(lambda seed: seed, "tasks")
        (True, False)
    """
    parameters = inspect.signature(function).parameters.values()
    return any(
        p.kind is p.VAR_KEYWORD or (p.name == name and p.kind is not p.POSITIONAL_ONLY)
        for p in parameters
    )
