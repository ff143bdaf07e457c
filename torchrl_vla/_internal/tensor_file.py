"""Reader of untrusted files of ``torch.save``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TypeVar

import torch

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import SchemaError, VLAError

T = TypeVar("T")


def read_tensors(
    caller: str,
    path: Path,
    kind: type[T],
    *,
    remedy: str,
    error: type[VLAError] = SchemaError,
) -> T:
    """Return what ``torch.save`` wrote, on the CPU; no code of the file runs.

    Args:
        caller: whose errors these are.
        path: of the file.
        kind: the declared type, see :func:`~.typed_values.typed`.

    Keyword Args:
        remedy: what helps if the file is damaged.
        error: class of the refusals.

    Raises:
        FileNotFoundError: there is no such file.
        VLAError: of class ``error``; it is damaged, of another type, or unpacks to more
            than it has.
    """
    origin = Origin.of_file(caller, path, remedy, error)
    expected = "a complete file of torch.save"
    with origin.reading(expected), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size = path.stat().st_size
    packed = sum(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    declared = sum(entry.file_size for entry in entries)
    if packed or declared > size:
        got = f"{declared} declared bytes in a file of {size}, {packed} parts packed"
        raise origin.refuse(expected, got)
    with origin.reading(expected):
        value = torch.load(path, map_location="cpu", weights_only=True)
    return typed(value, kind, origin)
