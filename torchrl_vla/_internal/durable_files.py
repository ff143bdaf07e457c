"""Atomic and durable writing of files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, then rename it: it is never half there.

    Args:
        path: of the file.
        write: writes its contents, e.g. with ``torch.save``.
    """
    with writing_file(path) as partial, partial.open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file with :func:`write_bytes`, in UTF-8."""
    write_bytes(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with :func:`write_text`."""
    write_text(path, json.dumps(value, indent=4, ensure_ascii=False))


@contextmanager
def writing_folder(folder: Path, last: str) -> Iterator[Path]:
    """Write several files of a folder, all or none.

    The files are written to a temporary folder below it. When all are on the disk they
    take the places of those of the same names, and the one without which a reader
    refuses the folder comes last. Other files stay.

    Args:
        folder: is created if need be.
        last: name of the file that marks the folder as complete.

    Yields:
        The temporary folder to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".writing.partial"
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        _flush_tree(partial)
        remove(folder / last)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
            remove(folder / path.name)
            path.rename(folder / path.name)
        flush_to_disk(folder)
    finally:
        remove(partial)


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Let a library write a file by name, whole or not at all.

    Args:
        path: of the file; its ending is kept, which may choose the format.

    Yields:
        The temporary path to write to.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def commit_folder(partial: Path, path: Path) -> None:
    """Give a finished folder its name, once all its files are on the disk."""
    _flush_tree(partial)
    partial.rename(path)
    flush_to_disk(path.parent)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
