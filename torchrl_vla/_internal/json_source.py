"""Reading of JSON from a text or a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import SchemaError, VLAError

T = TypeVar("T")

WRITE_AGAIN = "Was its writer killed? Write the file again."
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    caller: str,
    source: str | Path,
    kind: type[T],
    *,
    remedy: str = WRITE_AGAIN,
    error: type[VLAError] = SchemaError,
) -> T:
    """Return what a JSON text, or the file at a :class:`~pathlib.Path`, holds.

    Args:
        caller: whose errors these are.
        source: a str is the text itself, never the name of a file.
        kind: the declared type, see :func:`~.typed_values.typed`.

    Keyword Args:
        remedy: what helps if the file is damaged.
        error: class of the refusals.

    Raises:
        FileNotFoundError: there is no such file.
        VLAError: of class ``error``; it is no JSON, or of another type.

    Examples:
        >>> read_json("compare", '{"a": 1}', dict[str, int])
        {'a': 1}
    """
    if isinstance(source, Path):
        origin = Origin.of_file(caller, source, remedy, error)
        return typed(parse(read_text(origin, source), origin), kind, origin)
    hint = "Is it the name of a file? Pass a pathlib.Path."
    origin = Origin(caller, f"the text {source[:60]!r}", hint, error)
    return typed(parse(source, origin), kind, origin)


def read_json_lines(
    caller: str, path: Path, kind: type[T], *, remedy: str = WRITE_AGAIN
) -> list[T]:
    """Return the values of a JSON Lines file; refusals name the line.

    Args:
        caller: whose errors these are.
        path: of the file.
        kind: the declared type of each line.

    Keyword Args:
        remedy: what helps if the file is damaged.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaError: a line is no JSON, or of another type.
    """
    origin = Origin.of_file(caller, path, remedy)
    values = []
    for number, line in enumerate(read_text(origin, path).split("\n"), 1):
        if line.strip():
            row = origin.row(f"line {number}")
            values.append(typed(parse(line, row), kind, row))
    return values


def parse(text: str, origin: Origin) -> object:
    """Return the value of a JSON text."""
    with origin.reading("JSON"):
        value = json.loads(text)
        if _HALF_CHARACTER.search(text):  # a text that no file or terminal can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
