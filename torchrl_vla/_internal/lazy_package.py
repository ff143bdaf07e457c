"""Packages whose names are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a package that loads its names on demand.

    A command that only prints its help then needs no PyTorch.

    Args:
        package: its ``__name__``.
        modules: module to the names that it defines.

    Examples:
        >>> lazy_names("example", {"fractions": ["Fraction"]})("Fraction")(1)
        Fraction(1, 1)
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name]), name)
        if package in sys.modules:
            setattr(sys.modules[package], name, value)
        return value

    return load


class _LazyModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self._name), name)


def lazy_module(name: str) -> object:
    """Return a stand-in for a module, which is imported when it is first used.

    Args:
        name: of the module.

    Examples:
        >>> lazy_module("fractions").Fraction(1)
        Fraction(1, 1)
    """
    return _LazyModule(name)
