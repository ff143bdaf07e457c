"""Reading of safetensors files without the package, sizes first."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TypedDict

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
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        #: Shape of each tensor, by name.
        self.shapes = {name: entry["shape"] for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """Return one of the tensors.

        Raises:
            SchemaError: it is of an unknown dtype, or of another size than its shape.
        """
        entry = self._entries[name]
        first, last = entry["data_offsets"]
        with self.origin.reading(f"a tensor of {sorted(_DTYPES)}", name):
            dtype = _DTYPES[entry["dtype"]]
            if not 0 <= first <= last or last - first != prod(
                entry["shape"], start=dtype.itemsize
            ):
                raise ValueError(f"{last - first} bytes of {entry['shape']}")
            if first == last:
                return torch.empty(entry["shape"], dtype=dtype)
            with self.path.open("rb") as file:
                file.seek(self._first + first)
                content = bytearray(file.read(last - first))
            return torch.frombuffer(content, dtype=dtype).reshape(entry["shape"])
