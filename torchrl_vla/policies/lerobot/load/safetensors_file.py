"""Reading of safetensors files without the package, sizes first."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import parse
from torchrl_vla._internal.typed_values import typed

_REMEDY = (
    "Copy or download it again; a Git LFS pointer becomes the file with `git lfs pull`."
)
#: The limit of the package itself.
_LONGEST_HEADER = 100_000_000
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


class _Entry(TypedDict):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class TensorFile:
    """Tensors of a safetensors file, whose size is that of its numbers.

    Args:
        caller: whose errors these are.
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        SchemaError: it is cut, or holds something else, such as a Git LFS pointer.
    """

    def __init__(self, caller: str, path: Path) -> None:
        self.path = path
        self.origin = origin = Origin.of_file(caller, path, _REMEDY)
        size = path.stat().st_size
        damaged = origin.refuse(
            "the numbers of a checkpoint",
            f"{size} bytes that are cut or no safetensors file",
        )
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise damaged
            header = file.read(length)
        with origin.reading("a header in UTF-8"):
            text = header.decode("utf-8")
        entries = typed(parse(text, origin), dict[str, object], origin)
        entries.pop("__metadata__", None)
        self._first = 8 + length
        self._entries = typed(entries, dict[str, _Entry], origin)
        ends = [entry["data_offsets"][1] for entry in self._entries.values()]
        if self._first + max(ends, default=0) != size:
            raise damaged

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name; meant for the few numbers of statistics.

        Raises:
            SchemaError: one is of a type that statistics never are, or of another size.
        """
        content = self.path.read_bytes()[self._first :]
        tensors = {}
        for name, entry in self._entries.items():
            first, last = entry["data_offsets"]
            with self.origin.reading(f"a tensor of {sorted(_DTYPES)}", name):
                values = np.frombuffer(content[first:last], _DTYPES[entry["dtype"]])
                values = values.astype(np.float64).reshape(entry["shape"])
            tensors[name] = torch.from_numpy(values)
        return tensors
