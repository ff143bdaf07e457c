"""Task of the simulated SO-101 arm: go to the cube that the instruction names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_vla.runtime.so101.arm_model import CUBE_HALF_M, JOINTS
from torchrl_vla.runtime.so101.joint_units import to_radians

#: Height of the tip's goal above the center of the cube, and how near it has to come.
HOVER_M, TOLERANCE_M = 0.03, 0.03

#: The arm at the start of an episode, deg and percent; its tip is 13 cm high.
HOME = np.array([0.0, -85.0, 60.0, 60.0, 0.0, 60.0])

_SPREAD_DEG = 4.0  # of the start around HOME
_RADII_M, _ANGLE_RAD, _APART_M = (0.15, 0.24), 0.65, 0.07
_SHOULDER_X_M = 0.0388


@dataclass(frozen=True)
class CubeTask:
    """Say where arm and cubes start, and which cube is named: one episode.

    Args:
        colors: of the cubes.
        target: the color that the instruction names.
        positions: ``qpos`` of the model at the start.
    """

    colors: tuple[str, ...]
    target: str
    positions: np.ndarray

    @classmethod
    def from_seed(cls, colors: Sequence[str], target: str, seed: int) -> CubeTask:
        """Draw where arm and cubes start: a function of the seed alone."""
        draw = np.random.default_rng(seed)
        start = HOME + _SPREAD_DEG * draw.uniform(-1, 1, len(JOINTS))
        places: list[np.ndarray] = []
        while len(places) < len(colors):
            radius, angle = draw.uniform(*_RADII_M), draw.uniform(-1, 1) * _ANGLE_RAD
            place = radius * np.array([np.cos(angle), np.sin(angle)])
            place[0] += _SHOULDER_X_M
            if all(np.linalg.norm(place - other) > _APART_M for other in places):
                places.append(place)
        upright = [1.0, 0.0, 0.0, 0.0]
        cubes = [[*place, CUBE_HALF_M, *upright] for place in places]
        positions = np.concatenate([to_radians(start), *cubes])
        return cls(tuple(colors), target, positions)

    def goal(self, positions: np.ndarray) -> np.ndarray:
        """Return the place that the tip has to reach, m ``[3]``, at a ``qpos``."""
        start = len(JOINTS) + 7 * self.colors.index(self.target)
        return positions[start : start + 3] + np.array([0.0, 0.0, HOVER_M])

    def is_done(self, tip: np.ndarray, positions: np.ndarray) -> bool:
        """Tell whether the tip is at the goal."""
        return bool(np.linalg.norm(tip - self.goal(positions)) < TOLERANCE_M)
