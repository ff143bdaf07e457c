"""Reading of JSON from a text or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(caller: str, source: str | Path) -> Any:
    """Return what a JSON text, or the file at a :class:`~pathlib.Path`, holds.

    Args:
        caller: whose errors these are.
        source: a str is the text itself, never the name of a file.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON.

    Examples:
        >>> read_json("compare", '{"a": 1}')
        {'a': 1}
    """
    if isinstance(source, Path):
        text, got = source.read_text(), f"another text in {str(source)!r}"
        remedy = "Was its writer killed? Write the file again."
    else:
        text, got = source, repr(source[:60])
        remedy = "Is it the name of a file? Pass a pathlib.Path."
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{caller}: expected JSON, got {got}. {remedy}") from error
