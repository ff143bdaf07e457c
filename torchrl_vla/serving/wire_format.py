"""Bytes of a message: a header in msgpack and raw tensors behind it.

=============== ================================================================
bytes           content
=============== ================================================================
0..4            ``TVLA``
4..6            schema version, uint16, little-endian like all numbers
6..10           length of the header, uint32
10..14          CRC-32 of the header, uint32
14..            the header, msgpack: kind, sequence number, fields, batch size, and
                one entry per leaf
to the end      payloads of the leaves, each at the next multiple of 16, zeros between
=============== ================================================================
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TypeAlias, Union

import torch
from torch import Tensor

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import WireError
from torchrl_vla.serving.jpeg_images import decode_jpegs, encode_jpegs, is_photo
from torchrl_vla.serving.observation_leaves import Leaves, Path

#: Version of the messages' schema; another one is refused, by name.
SCHEMA_VERSION = 1

#: Value of a field: what JSON holds.
Field: TypeAlias = Union[  # noqa: UP007 (a name of its own is in it)
    bool, int, float, str, list["Field"], dict[str, "Field"], None
]

_MAGIC, _PREFIX, _ALIGNMENT = b"TVLA", struct.Struct("<4sHII"), 16
_LONGEST_HEADER = 1 << 20
_MOST_LEAVES, _MOST_DIMS = 256, 16
_DTYPES = MappingProxyType(
    {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (
            *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32),
            *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
        )
    }
)
_Kind: TypeAlias = tuple[str, tuple[int, ...], str]
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass
class Message:
    """Hold one message.

    Args:
        kind: what it says, e.g. ``"request"``.
        sequence: number of the request that it is, or answers; 0 = of none.
        fields: by name, what the kind declares.
        leaves: the tensors and texts; None = there are none.
    """

    kind: str
    sequence: int = 0
    fields: dict[str, Field] = field(default_factory=dict)
    leaves: Leaves | None = None


class TensorDictCodec:
    """Encode messages with tensors, exactly or with JPEG images, and decode them.

    Every dtype but complex ones keeps all its bits. Nothing that arrives is executed:
    the header is msgpack without extension types, the rest are numbers. Decoded
    tensors are on the CPU and own their memory.

    Args:
        jpeg_quality: of uint8 images with three channels, 1..95; None = raw, exact.

    Raises:
        MissingExtraError: ``msgpack`` is not installed, or ``pillow`` for JPEG.

    Source: msgpack.org for the header's encoding.

    Examples:
        >>> leaves = Leaves((1,), {("observation", "state"): torch.tensor([[0.5]])})
        >>> codec = TensorDictCodec()
        >>> data = codec.encode(Message("request", 7, leaves=leaves))
        >>> codec.decode(data).leaves.tensors["observation", "state"]
        tensor([[0.5000]])
        >>> codec.decode(data[:-1])
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.WireError: TensorDictCodec: expected 4 bytes at payload of \
('observation', 'state'), got 3. The message is damaged or of another program.
    """

    def __init__(self, jpeg_quality: int | None = None) -> None:
        self._msgpack = import_extra("msgpack", "serving", "TensorDictCodec")
        if jpeg_quality is not None and not 1 <= jpeg_quality <= 95:
            raise ValueError(
                "TensorDictCodec: expected jpeg_quality in 1..95, got "
                f"{jpeg_quality}. Leave it out for exact images."
            )
        self.jpeg_quality = jpeg_quality

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a message.

        Raises:
            WireError: a tensor is of a type that no message holds.
        """
        leaves = message.leaves or Leaves((), {})
        entries, payloads = [], []
        for path, tensor in leaves.tensors.items():
            encoding, payload = self._payload(path, tensor)
            payloads.append(payload)
            name, shape = _NAMES[tensor.dtype], list(tensor.shape)
            entries.append([list(path), name, shape, encoding, len(payload)])
        header = self._msgpack.packb(
            {
                "kind": message.kind,
                "sequence": message.sequence,
                "fields": message.fields,
                "batch": None if message.leaves is None else list(leaves.batch_size),
                "tensors": entries,
                "texts": [[list(p), texts] for p, texts in leaves.texts.items()],
            }
        )
        prefix = _PREFIX.pack(_MAGIC, SCHEMA_VERSION, len(header), zlib.crc32(header))
        parts, size = [prefix, header], len(prefix) + len(header)
        for payload in payloads:
            gap = -size % _ALIGNMENT
            parts += [bytes(gap), payload]
            size += gap + len(payload)
        return b"".join(parts)

    def _payload(self, path: Path, tensor: Tensor) -> tuple[str, bytes | memoryview]:
        if tensor.dtype not in _NAMES:
            raise WireError(
                f"TensorDictCodec: expected one of {list(_DTYPES)} at {path}, got "
                f"{tensor.dtype}. Convert it."
            )
        if self.jpeg_quality is not None and is_photo(tensor):
            return "jpeg", encode_jpegs(tensor, self.jpeg_quality)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return "raw", flat.view(torch.uint8).numpy().data if len(flat) else b""

    def decode(self, data: bytes) -> Message:
        """Return the message that bytes hold.

        Raises:
            WireError: they hold none of this schema version; nothing of them is used.
        """
        header, start = self._header(data)
        match header:
            case {
                "kind": str(kind),
                "sequence": int(sequence),
                "fields": dict(fields),
                "batch": list() | None as batch,
                "tensors": list(entries),
                "texts": list(texts),
            } if len(header) == 6 and 0 <= sequence < 1 << 63:  # type: ignore[arg-type]
                pass
            case _:
                raise _refuse("a header with six entries", "header", "another")
        if batch is None:
            if entries or texts or start != len(data):
                raise _refuse("no leaves", "header", "some without a batch size")
            return Message(kind, sequence, fields)
        if len(entries) + len(texts) > _MOST_LEAVES:
            got = str(len(entries) + len(texts))
            raise _refuse(f"at most {_MOST_LEAVES} leaves", "header", got)
        leaves = Leaves(_sizes(batch, "batch"), {})
        self._read_tensors(data, start, entries, leaves)
        for entry in texts:
            path, value = _text(entry)
            _check_new(path, leaves)
            leaves.texts[path] = value
        leaves.check("TensorDictCodec")
        return Message(kind, sequence, fields, leaves)

    def _header(self, data: bytes) -> tuple[object, int]:
        if len(data) < _PREFIX.size or data[:4] != _MAGIC:
            raise _refuse(f"{_MAGIC!r}", "the first bytes", repr(bytes(data[:4])))
        _, version, length, checksum = _PREFIX.unpack_from(data)
        if version != SCHEMA_VERSION:
            raise WireError(
                f"TensorDictCodec: expected schema version {SCHEMA_VERSION}, got "
                f"{version}. Install the same torchrl_vla on both machines."
            )
        start = _PREFIX.size + length
        raw = data[_PREFIX.size : start]
        if length > _LONGEST_HEADER or len(raw) != length:
            limit = min(len(data) - _PREFIX.size, _LONGEST_HEADER)
            raise _refuse(f"at most {limit} bytes", "header", str(length))
        if zlib.crc32(raw) != checksum:
            raise _refuse("its CRC-32", "header", "another")
        try:
            # Extension types stay numbered bytes, which no entry of a header may be.
            return self._msgpack.unpackb(raw, strict_map_key=True), start
        except Exception as error:  # msgpack's own and those of its buffers
            raise _refuse("msgpack", "header", type(error).__name__) from error

    def _read_tensors(
        self, data: bytes, start: int, entries: list[object], leaves: Leaves
    ) -> None:
        owned = bytearray(data)  # one copy, which the tensors share
        for entry in entries:
            match entry:
                case [list() as parts, str(name), list() as shape, str(how), int(size)]:
                    path = _path(parts)
                case _:
                    raise _refuse("five values", "entry of a tensor", "others")
            _check_new(path, leaves)
            begin = start + -start % _ALIGNMENT
            start = begin + size
            if name not in _DTYPES or how not in ("raw", "jpeg") or size < 0:
                raise _refuse("a known encoding", str(path), f"{name!r}, {how!r}")
            if start > len(data):
                got = str(max(0, len(data) - begin))
                raise _refuse(f"{size} bytes", f"payload of {path}", got)
            tensor = _tensor(owned, begin, size, (name, _sizes(shape, path), how), path)
            leaves.tensors[path] = tensor
        if start != len(data):
            raise _refuse(f"{start} bytes", "message", str(len(data)))


def _tensor(owned: bytearray, begin: int, size: int, kind: _Kind, path: Path) -> Tensor:
    name, shape, how = kind
    dtype = _DTYPES[name]
    if how == "jpeg":
        if dtype != torch.uint8:
            raise _refuse("uint8 images", str(path), name)
        return decode_jpegs(bytes(owned[begin : begin + size]), shape, str(path))
    if prod(shape) * dtype.itemsize != size:
        got = f"{size} of {list(shape)} {name}"
        raise _refuse(f"{prod(shape) * dtype.itemsize} bytes", str(path), got)
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    count = prod(shape)
    raw = torch.uint8 if dtype == torch.bool else dtype
    tensor = torch.frombuffer(owned, dtype=raw, count=count, offset=begin)
    if dtype == torch.bool:
        if int(tensor.max()) > 1:
            raise _refuse("0 or 1", str(path), str(int(tensor.max())))
        tensor = tensor.view(torch.bool)
    return tensor.reshape(shape)


def _sizes(values: list[object], at: object) -> tuple[int, ...]:
    sizes = [v for v in values if type(v) is int and 0 <= v < 1 << 31]
    if len(sizes) != len(values) or len(values) > _MOST_DIMS:
        raise _refuse(f"at most {_MOST_DIMS} sizes", str(at), repr(values)[:80])
    return tuple(sizes)


def _path(parts: list[object]) -> Path:
    names = [part for part in parts if isinstance(part, str) and part]
    if not names or len(names) != len(parts) or len(names) > _MOST_DIMS:
        raise _refuse("names", "path", repr(parts)[:80])
    return tuple(names)


def _text(entry: object) -> tuple[Path, list[str]]:
    match entry:
        case [list() as parts, list() as texts] if all(type(t) is str for t in texts):
            return _path(parts), [str(text) for text in texts]
    raise _refuse("a path and texts", "entry of a text", "others")


def _check_new(path: Path, leaves: Leaves) -> None:
    """Refuse a path that is there, or that lies below or above another."""
    for known in (*leaves.tensors, *leaves.texts):
        shared = min(len(known), len(path))
        if known[:shared] == path[:shared]:
            raise _refuse("separate paths", "header", f"{known} and {path}")


def _refuse(expected: str, at: str, got: str) -> WireError:
    return WireError(
        f"TensorDictCodec: expected {expected} at {at}, got {got}. The message is "
        "damaged or of another program."
    )
