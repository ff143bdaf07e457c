"""Triangle meshes, read and simplified by clustering of vertices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_vla._internal.file_origin import Origin, read_bytes

_HEADER_BYTES = 84
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a binary STL file.

    Returns:
        Vertices float64 ``[3 F, 3]``, one for each corner of a face, and faces int64
        ``[F, 3]``.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaError: its length is not that of whole triangles.
    """
    origin = Origin.of_file("read_stl", path, "Install its package again.")
    content = read_bytes(origin, path)
    with origin.reading("a binary STL file"):
        facets = np.frombuffer(content, _FACET, offset=_HEADER_BYTES)
    vertices = facets["corners"].reshape(-1, 3).astype(np.float64)
    return vertices, np.arange(len(vertices)).reshape(-1, 3)


def simplify_mesh(
    vertices: np.ndarray, faces: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the vertices of each cell of a grid into their mean.

    Args:
        vertices: float ``[V, 3]``.
        faces: indices of vertices, int ``[F, 3]``.
        cell: side of a cell, in the vertices' unit.

    Returns:
        Vertices float64 ``[V', 3]`` and faces int32 ``[F', 3]``, without those that
        collapsed to a line or a point and without repetitions.

    Examples:
        >>> square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0.9, 1, 0]])
        >>> simplify_mesh(square, np.array([[0, 1, 2], [0, 2, 3]]), 0.5)[1]
        array([[0, 1, 2]], dtype=int32)

    Source: J. Rossignac and P. Borrel, "Multi-resolution 3D approximations for
    rendering complex scenes" (1993).
    """
    cells = np.floor((vertices - vertices.min(0)) / cell + 0.5).astype(np.int64)
    # One number per cell: rows are sorted ten times as slowly.
    number = np.ravel_multi_index(tuple(cells.T), tuple(cells.max(0) + 1), mode="wrap")
    _, cluster = np.unique(number, return_inverse=True)
    size = np.bincount(cluster)
    means = np.stack([np.bincount(cluster, axis) / size for axis in vertices.T], 1)
    merged = cluster[faces]
    following = np.roll(merged, 1, axis=1)
    merged = merged[(merged != following).all(1)]
    _, first = np.unique(np.sort(merged, 1), axis=0, return_index=True)
    return means, merged[np.sort(first)].astype(np.int32)
