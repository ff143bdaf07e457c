from __future__ import annotations

import numpy as np
import pytest

from torchrl_vla.runtime.so101.mesh_simplification import read_stl, simplify_mesh
from torchrl_vla.schema import SchemaError


def test_vertices_of_a_cell_become_their_mean_and_flat_faces_vanish():
    vertices = np.array([[0.0, 0, 0], [0.1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 2, 3], [0, 3, 4]])
    light, kept = simplify_mesh(vertices, faces, 0.5)
    assert len(light) == 4
    # (0, 1, 2) is a line now; (1, 2, 3) is (0, 2, 3) again.
    assert np.allclose(light[kept[0]], [[0.05, 0, 0], [1, 0, 0], [1, 1, 0]])
    assert np.allclose(light[kept[1]], [[0.05, 0, 0], [1, 1, 0], [0, 1, 0]])
    assert len(kept) == 2


def test_cells_smaller_than_every_distance_change_nothing():
    draw = np.random.default_rng(0)
    vertices = draw.uniform(size=(20, 3))
    faces = np.array([[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)])
    light, kept = simplify_mesh(vertices, faces, 1e-5)
    assert np.allclose(light[kept], vertices[faces])


def test_a_binary_stl_is_read_and_a_cut_one_is_refused(tmp_path):
    corners = np.arange(18, dtype="<f4").reshape(2, 3, 3)
    facets = b"".join(bytes(12) + c.tobytes() + bytes(2) for c in corners)
    (tmp_path / "a.stl").write_bytes(bytes(80) + b"\2\0\0\0" + facets)
    vertices, faces = read_stl(tmp_path / "a.stl")
    assert np.array_equal(vertices[faces], corners)
    (tmp_path / "cut.stl").write_bytes(bytes(84) + facets[:-5])
    with pytest.raises(
        SchemaError, match=r"read_stl: expected a binary STL .*cut\.stl"
    ):
        read_stl(tmp_path / "cut.stl")
