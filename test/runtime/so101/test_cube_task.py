from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")

from torchrl_vla.runtime.so101.cube_task import CubeTask

COLORS = ("red", "green", "blue")


def test_an_episode_is_a_function_of_its_seed():
    first, again, other = (CubeTask.from_seed(COLORS, "red", s) for s in (3, 3, 4))
    assert np.array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, other.positions)


def test_the_named_color_does_not_move_the_cubes():
    red, blue = (CubeTask.from_seed(COLORS, color, 3) for color in ("red", "blue"))
    assert np.array_equal(red.positions, blue.positions)
    assert not np.array_equal(red.goal(red.positions), blue.goal(blue.positions))


def test_cubes_lie_apart():
    tasks = [CubeTask.from_seed(COLORS, "red", seed) for seed in range(60)]
    for task in tasks:
        cubes = task.positions[6:].reshape(3, 7)[:, :2]
        distances = np.linalg.norm(cubes[:, None] - cubes, axis=-1)
        assert distances[~np.eye(3, dtype=bool)].min() > 0.07


def test_the_goal_follows_the_named_cube_and_no_other():
    task = CubeTask(COLORS, "green", np.zeros(27))
    positions = np.zeros(27)
    positions[13:16] = 0.2, 0.1, 0.015  # of the second cube
    assert task.goal(positions) == pytest.approx([0.2, 0.1, 0.045])
    assert task.is_done(np.array([0.2, 0.1, 0.02]), positions)
    assert not task.is_done(np.array([0.2, 0.1, 0.08]), positions)
