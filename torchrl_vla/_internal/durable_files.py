"""Atomic and durable writing of files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under another name, then rename it: it is never half there.

    Args:
        path: of the file.
        write: writes its contents, e.g. with ``torch.save``.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        write(file)
    flush_to_disk(partial)
    partial.replace(path)
    flush_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file with :func:`write_bytes`, in UTF-8."""
    write_bytes(path, lambda file: _write(file, text.encode("utf-8")))


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with :func:`write_text`."""
    write_text(path, json.dumps(value, indent=4, ensure_ascii=False))


def commit_folder(partial: Path, path: Path) -> None:
    """Give a finished folder its name, once all its files are on the disk."""
    for path_below in partial.rglob("*"):
        flush_to_disk(path_below)
    flush_to_disk(partial)
    partial.rename(path)
    flush_to_disk(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
