"""Public names with their signatures, one line each, as ``public_api.txt`` holds them.

``python test/support/public_api.py`` (``make api``) writes the file anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchrl_vla

FILE = Path(__file__).parents[1] / "public_api.txt"


def public_lines() -> list[str]:
    """Return every public name, and of classes every public method."""
    lines = []
    for module in sorted(m.name for m in pkgutil.iter_modules(torchrl_vla.__path__)):
        package = importlib.import_module(f"torchrl_vla.{module}")
        for name in sorted(getattr(package, "__all__", ())):
            lines += _lines(f"{module}.{name}", getattr(package, name))
    return lines


def _lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        # The class's own __init__: metaclasses of TorchRL hide it from inspect.
        yield f"{name}{_signature(value.__init__, skip=1)}"
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_"):
                yield from _member(f"{name}.{key}", member)
    elif inspect.isroutine(value):
        yield f"{name}{_signature(value)}"
    else:
        yield name


def _member(name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property):
        yield f"{name} (property)"
    elif isinstance(member, classmethod):
        yield f"{name}{_signature(member.__func__, skip=1)} (classmethod)"
    elif isinstance(member, staticmethod):
        yield f"{name}{_signature(member.__func__)} (staticmethod)"
    elif inspect.isfunction(member):
        yield f"{name}{_signature(member, skip=1)}"


def _signature(function: Any, skip: int = 0) -> str:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except ValueError:
        return "(...)"
    parts, star = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        kind = "" if p.annotation is p.empty else f": {p.annotation}"
        default = "" if p.default is p.empty else f" = {_default(p.default)}"
        parts.append(f"{prefix}{p.name}{kind}{default}")
    return f"({', '.join(parts)})"


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}(...)"
    text = repr(value)
    return text if " at 0x" not in text and "<" not in text else "..."


if __name__ == "__main__":
    FILE.write_text("\n".join(public_lines()) + "\n")
