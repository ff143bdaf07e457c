"""Lazy imports of optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from torchrl_vla.errors import MissingExtraError


def import_extra(module: str, extra: str, caller: str) -> ModuleType:
    """Import an optional package, or say which extra installs it.

    Args:
        module: the module to import, e.g. ``"metaworld"``.
        extra: the extra of ``torchrl-vla`` that installs it.
        caller: what needs it, e.g. ``"MetaWorldEnv"``; opens the error message.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the package is absent or fails to import.

    Examples:
        >>> import_extra("math", "demo", "This example").sqrt(4.0)
        2.0
        >>> import_extra("no_such_package", "demo", "This example")
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.MissingExtraError: This example: expected the \
package 'no_such_package' to be importable, got ModuleNotFoundError: No module named \
'no_such_package'. Install it with: pip install 'torchrl-vla[demo]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{caller}: expected the package {module!r} to be importable, got "
            f"{type(error).__name__}: {error}. "
            f"Install it with: pip install 'torchrl-vla[{extra}]'"
        ) from error
