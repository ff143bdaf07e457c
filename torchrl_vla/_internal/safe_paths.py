"""Paths from untrusted text, which never lead out of their root."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torchrl_vla._internal.file_origin import Origin

_DRIVE = re.compile(r"[A-Za-z]:")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\\]")
_FIELD = re.compile(r"\{(\w+)(?::(0?\d{1,2})d)?\}")
_LONGEST_NAME = 255


def path_below(origin: Origin, root: Path, text: str, what: str) -> Path:
    """Return the path of an untrusted text below a folder.

    Symbolic links may lead to other places below the folder, and from a snapshot of
    the Hugging Face Hub to the files of its cache.

    Args:
        origin: of the text.
        root: the folder.
        text: names and ``/``, in any file system's eyes below the folder.
        what: it is the path of, for errors.

    Raises:
        VLAError: it is empty, absolute, contains ``..`` or characters that no path
            should, or a link leads out of the folder.

    Examples:
        >>> origin = Origin("Reader", "'info.json'", "Fetch it again.")
        >>> path_below(origin, Path("data"), "a/b.png", "the picture").as_posix()
        'data/a/b.png'
        >>> path_below(origin, Path("data"), "../b.png", "the picture")
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Reader: expected a path below 'data' for the \
picture in 'info.json', got '../b.png'. Fetch it again.
    """
    expected = f"a path below {str(root)!r} for {what}"
    if _DRIVE.match(text) or not all(map(_is_name, text.split("/"))):
        raise origin.refuse(expected, repr(text))
    path = root / text
    with origin.reading(expected):
        real, home = path.resolve(), root.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(home) for home in homes):
        raise origin.refuse(expected, f"{text!r}, a link to {str(real)!r}")
    return path


def check_name(origin: Origin, text: str, what: str) -> None:
    """Refuse an untrusted text that is no plain name of a file or folder.

    Args:
        origin: of the text.
        text: such as the name of a camera.
        what: it names, for errors.

    Raises:
        VLAError: it is empty, ``..``, or contains ``/`` or the like.
    """
    if "/" in text or _DRIVE.match(text) or not _is_name(text):
        raise origin.refuse(
            f"a plain name, without '/' and '..', for {what}", f"{text!r}"
        )


def fill_template(
    origin: Origin, template: str, values: Mapping[str, int | str], what: str
) -> str:
    """Fill the fields ``{name}`` and ``{name:03d}`` of an untrusted template.

    ``str.format`` would also follow attributes and allocate any width.

    Args:
        origin: of the template.
        template: the text.
        values: of the fields.
        what: it is the template of, for errors.

    Raises:
        VLAError: it has other fields, or braces that are none.

    Examples:
        >>> origin = Origin("Reader", "'info.json'", "Fetch it again.")
        >>> fill_template(origin, "chunk-{chunk:03d}/a", {"chunk": 7}, "data")
        'chunk-007/a'
    """

    def fill(field: re.Match[str]) -> str:
        name, width = field.groups()
        value = values.get(name)
        if value is None or (width is not None and type(value) is not int):
            raise origin.refuse(expected, repr(field[0]), what)
        return format(value, f"{width}d") if width else str(value)

    expected = f"a template with fields of {sorted(values)}, such as '{{name:03d}}',"
    rest = _FIELD.sub("", template)
    if "{" in rest or "}" in rest:
        raise origin.refuse(expected, repr(template), what)
    return _FIELD.sub(fill, template)


def _is_name(name: str) -> bool:
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:  # half a character
        return False
    return 0 < size <= _LONGEST_NAME and not (
        name in (".", "..") or _UNUSABLE.search(name)
    )
