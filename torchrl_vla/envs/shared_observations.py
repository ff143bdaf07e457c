"""Arrays in memory that a caller shares with its worker processes."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Mapping
from math import prod
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np

from torchrl_vla.envs.lazy_rendering import Key

Entry = tuple[tuple[int, ...], str]

#: Every array begins at a multiple of it, in bytes: a line of the processor's cache.
_ALIGNMENT = 64


class SharedObservations:
    """Two arrays ``[N, ...]`` per entry, in memory that processes share.

    Workers write to one of the two while the caller still reads the other, so an error
    in one of them leaves the caller with what it had.

    The memory has no name: it is a file of the kernel that lives as long as a process
    holds it, so nothing is left behind by one that is killed, and no limit of
    ``/dev/shm`` applies.

    Args:
        count: ``N``, the environments.
        layout: shape of each entry without ``N``, and the name of its dtype.
        handle: of the file, as :meth:`receive` got it; None makes one.

    Examples:
        >>> shared = SharedObservations(2, {"state": ((3,), "float32")})
        >>> shared.pages[0]["state"][1] = 7.0
        >>> shared.pages[0]["state"].tolist()
        [[0.0, 0.0, 0.0], [7.0, 7.0, 7.0]]
    """

    def __init__(
        self,
        count: int,
        layout: Mapping[Key, Entry],
        handle: int | None = None,
    ) -> None:
        self._count, self._layout = count, dict(layout)
        places, size = [], 0
        for _ in range(2):
            for shape, dtype in layout.values():
                places.append(size)
                width = count * prod(shape) * np.dtype(dtype).itemsize
                size += -(-width // _ALIGNMENT) * _ALIGNMENT
        if handle is None:
            handle = _anonymous_file(size)
        self._memory = mmap.mmap(handle, size)
        self._handle = handle
        weakref.finalize(self, os.close, handle)
        arrays = [
            np.ndarray((count, *shape), dtype, self._memory, place)
            for place, (shape, dtype) in zip(
                places, [*layout.values()] * 2, strict=True
            )
        ]
        keys = list(layout)
        self.pages: tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]] = (
            dict(zip(keys, arrays[: len(keys)], strict=True)),
            dict(zip(keys, arrays[len(keys) :], strict=True)),
        )

    def send(self, pipe: Connection, process_id: int | None) -> None:
        """Give a process the memory: it calls :meth:`receive`."""
        pipe.send((self._count, self._layout))
        reduction.send_handle(pipe, self._handle, process_id)

    @classmethod
    def receive(cls, pipe: Connection) -> SharedObservations:
        """Return the memory that the other end of a pipe sends."""
        count, layout = pipe.recv()
        return cls(count, layout, reduction.recv_handle(pipe))

    def rows(self, first: int, stop: int) -> list[dict[Key, np.ndarray]]:
        """Return both pages, with the rows of some environments alone."""
        return [
            {key: array[first:stop] for key, array in page.items()}
            for page in self.pages
        ]


def _anonymous_file(size: int) -> int:
    """Return the descriptor of a file of zeros without a name."""
    if sys.platform == "linux":
        handle = os.memfd_create("observations")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle
