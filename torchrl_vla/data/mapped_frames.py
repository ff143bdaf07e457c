"""Read-only memory map of frames that TensorDict wrote to files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TypedDict

import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.safe_paths import path_below
from torchrl_vla._internal.typed_values import typed

_META = "meta.json"
# Characters of a key that TensorDict writes as %xx in the name of its file.
_ESCAPED = re.compile(r'^\.{1,2}$|[/<>:"|?*\\ %\x00-\x1f\x7f]')


class _Folder(TypedDict):
    shape: tuple[int, ...]


class _Entry(TypedDict):
    type: str | None
    shape: tuple[int, ...] | None
    dtype: str | None


def map_frames(caller: str, folder: Path, remedy: str) -> TensorDict:
    """Map a folder that ``TensorDict.memmap`` wrote, without changing it.

    ``TensorDict.load_memmap`` lets a file that was cut off grow with zeros, and writes
    through to the files. Here sizes must agree with what is declared, and what is
    written into the tensors stays in this process.

    Args:
        caller: whose errors these are.
        folder: of the TensorDict.
        remedy: what helps if a file is damaged.

    Returns:
        The frames, one :class:`~tensordict.MemoryMappedTensor` per entry.

    Raises:
        FileNotFoundError: a file is missing.
        SchemaError: a file has another size than ``meta.json`` says, or that is
            damaged.
    """
    path = folder / _META
    origin = Origin.of_file(caller, path, remedy)
    contents = read_json(caller, path, dict[str, object], remedy=remedy)
    shape = typed(contents, _Folder, origin)["shape"]
    with origin.reading("the sizes of frames"):
        frames = TensorDict({}, shape)
    for key, value in contents.items():
        match value:
            case dict():
                entry = typed(value, _Entry, origin, key)
                name = _ESCAPED.sub(_escape, key) or "%"
                part: TensorDict | Tensor
                if entry["type"] is not None:
                    below = path_below(origin, folder, name, key)
                    part = map_frames(caller, below, remedy)
                else:
                    file = path_below(origin, folder, f"{name}.memmap", key)
                    part = _map(Origin.of_file(caller, file, remedy), file, entry)
                with origin.reading(f"sizes that begin with {list(shape)}", key):
                    frames.set(key, part)
    return frames


def _map(origin: Origin, path: Path, entry: _Entry) -> Tensor:
    shape, name = entry["shape"] or (), str(entry["dtype"])
    dtype = vars(torch).get(name.removeprefix("torch."))
    if type(dtype) is not torch.dtype or min(shape, default=0) < 0:
        expected = f"a dtype and sizes in {_META!r}"
        raise origin.refuse(expected, f"{name} and {list(shape)}")
    expected_bytes, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if size != expected_bytes:
        expected = f"{expected_bytes} bytes ({name} {list(shape)})"
        raise origin.refuse(expected, f"{size}: the file was cut off or grew")
    with origin.reading("numbers"):
        count = math.prod(shape)
        tensor = torch.from_file(str(path), shared=False, size=count, dtype=dtype)
        mapped = MemoryMappedTensor(tensor.view(shape))
        mapped.filename = path
        mapped._handler, mapped.index, mapped.parent_shape = None, None, shape
        return mapped


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{ord(character):02X}" for character in match[0])
