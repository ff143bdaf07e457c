"""Messages of openpi: dictionaries with arrays, in msgpack."""

from __future__ import annotations

from math import prod

import numpy as np

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import WireError
from torchrl_vla.serving.openpi_keys import Values

_KINDS = "biuf"
_MOST_DIMS = 16


class OpenPICodec:
    """Encode and decode dictionaries as openpi's clients and servers do.

    An array is a map with the byte keys ``__ndarray__``, ``data``, ``dtype`` and
    ``shape``; a NumPy number one with ``__npgeneric__``. Only bool, integer and float
    arrays are read.

    Source: ``openpi_client.msgpack_numpy``, version 0.1.

    Examples:
        >>> codec = OpenPICodec()
        >>> data = codec.encode({"actions": np.zeros((2, 1), np.float32)})
        >>> codec.decode(data)["actions"].shape
        (2, 1)
        >>> codec.decode(b"x")
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.WireError: OpenPICodec: expected a dictionary in msgpack, \
got int.
    """

    def __init__(self) -> None:
        self._msgpack = import_extra("msgpack", "serving", "OpenPICodec")

    def encode(self, values: Values) -> bytes:
        """Return the bytes of a dictionary."""
        return self._msgpack.packb(dict(values), default=_pack)

    def decode(self, data: bytes) -> dict[str, object]:
        """Return the dictionary that bytes hold.

        Raises:
            WireError: they hold none.
        """
        try:
            values = self._msgpack.unpackb(data, object_hook=_unpack)
        except WireError:
            raise
        except Exception as error:  # msgpack's own and those of its buffers
            raise WireError(
                f"OpenPICodec: expected msgpack, got {type(error).__name__}."
            ) from error
        match values:
            case dict() if all(type(key) is str for key in values):
                return values
        raise WireError(
            "OpenPICodec: expected a dictionary in msgpack, got "
            f"{type(values).__name__}."
        )


def _pack(value: object) -> object:
    match value:
        case np.ndarray() if value.dtype.kind in _KINDS:
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        case np.generic() if value.dtype.kind in _KINDS:
            return {
                b"__npgeneric__": True,
                b"data": value.item(),
                b"dtype": value.dtype.str,
            }
    raise WireError(
        f"OpenPICodec: expected arrays of numbers, got {type(value).__name__}."
    )


def _unpack(value: dict[object, object]) -> object:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        match value.get(b"data"):
            case bool() | int() | float() as number:
                return number
        raise WireError("OpenPICodec: expected a number, got another value.")
    return value


def _array(value: dict[object, object]) -> np.ndarray:
    match value:
        case {b"data": bytes(data), b"dtype": str(name), b"shape": list(shape)}:
            pass
        case _:
            raise WireError("OpenPICodec: expected data, dtype and shape of an array.")
    sizes = [size for size in shape if type(size) is int and 0 <= size < 1 << 31]
    if name[:1] not in "<|>=" or name[1:2] not in _KINDS or not name[2:].isdigit():
        raise WireError(f"OpenPICodec: expected a dtype of numbers, got {name!r}.")
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise WireError(f"OpenPICodec: expected a dtype, got {name!r}.") from error
    if len(sizes) != len(shape) or len(shape) > _MOST_DIMS:
        raise WireError(f"OpenPICodec: expected sizes, got {shape!r:.80}.")
    if prod(sizes) * dtype.itemsize != len(data):
        raise WireError(
            f"OpenPICodec: expected {prod(sizes) * dtype.itemsize} bytes of {name} "
            f"{sizes}, got {len(data)}."
        )
    return np.frombuffer(data, dtype).reshape(sizes)
