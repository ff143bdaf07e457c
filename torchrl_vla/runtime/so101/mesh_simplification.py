"""Simplification of triangle meshes by clustering of vertices."""

from __future__ import annotations

import numpy as np


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
    cells = np.floor(vertices / cell + 0.5).astype(np.int64)
    _, cluster = np.unique(cells, axis=0, return_inverse=True)
    cluster = cluster.reshape(-1)
    size = np.bincount(cluster)
    means = np.stack([np.bincount(cluster, axis) / size for axis in vertices.T], 1)
    merged = cluster[faces]
    following = np.roll(merged, 1, axis=1)
    merged = merged[(merged != following).all(1)]
    _, first = np.unique(np.sort(merged, 1), axis=0, return_index=True)
    return means, merged[np.sort(first)].astype(np.int32)
