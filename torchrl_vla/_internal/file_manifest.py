"""Sizes and checksums of the files of a folder of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypedDict

from torchrl_vla._internal.durable_files import write_json
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.safe_paths import path_below

MANIFEST = "files.json"
_SMALL_BYTES = 1 << 20


class _Entry(TypedDict):
    size: int
    blake2b: str


def write_manifest(folder: Path) -> None:
    """Write the size and checksum of each file that is in a folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "blake2b": checksum(path),
        }
        for path in paths
        if path != folder / MANIFEST
    }
    write_json(folder / MANIFEST, entries)


def check_manifest(
    caller: str, folder: Path, remedy: str, *, verify: bool = False
) -> None:
    """Refuse a folder of which a file is missing, cut, grown or changed.

    Args:
        caller: whose errors these are.
        folder: in which :func:`write_manifest` was called.
        remedy: what helps if a file is damaged.

    Keyword Args:
        verify: True = read files of more than 1 MiB too, of which otherwise the size
            alone is compared.

    Raises:
        FileNotFoundError: a file is missing.
        SchemaError: names the file, and what it should be.
    """
    path = folder / MANIFEST
    listed = Origin.of_file(caller, path, remedy)
    entries = read_json(caller, path, dict[str, _Entry], remedy=remedy)
    for name, entry in entries.items():
        file = path_below(listed, folder, name, "a file")
        origin = Origin.of_file(caller, file, remedy)
        size = file.stat().st_size
        if size != entry["size"]:
            expected = f"{entry['size']} bytes, as {MANIFEST!r} says,"
            raise origin.refuse(expected, f"{size}: the file was cut off or grew")
        is_read = verify or size <= _SMALL_BYTES
        if is_read and checksum(file) != entry["blake2b"]:
            expected = f"the checksum {entry['blake2b']} of {MANIFEST!r}"
            raise origin.refuse(expected, "another: the contents were changed")


def checksum(path: Path) -> str:
    """Return the BLAKE2b hash of a file, 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_SMALL_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
