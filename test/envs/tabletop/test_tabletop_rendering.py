from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.envs.tabletop.scene import BLOCK_RADIUS, PALETTE, Scene
from torchrl_vla.envs.tabletop.tabletop_rendering import render_camera, render_scene

TABLE = (206, 200, 190)


def paint(scene, row, size):
    """Every pixel on its own: the table, then each block over it."""
    image = torch.zeros(3, size, size)
    for i in range(size):
        for j in range(size):
            x, y = (j + 0.5) * 2 / size - 1, 1 - (i + 0.5) * 2 / size
            color = [float(c) for c in TABLE]
            for block, hue in zip(scene.blocks[row].tolist(), scene.colors[row]):
                outside = math.dist((x, y), block) - BLOCK_RADIUS
                cover = min(1.0, max(0.0, 0.5 - outside * size / 2))
                paint = list(PALETTE.values())[hue]
                color = [c + cover * (p - c) for c, p in zip(color, paint)]
            image[:, i, j] = torch.tensor(color)
    return image


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(8, 24), st.integers(2, 6))
def test_the_camera_shows_what_a_painter_of_single_pixels_paints(seed, size, blocks):
    scene = Scene.from_seeds(torch.tensor([seed, seed + 1]), blocks, 0.0)
    image = render_camera(scene, size)
    assert image.dtype == torch.uint8
    for row in range(2):
        difference = image[row].float() - paint(scene, row, size)
        assert difference.abs().max() <= 0.51  # rounding to a byte


def test_up_is_up_and_right_is_right():
    scene = Scene.from_seeds(torch.tensor([0]), 2, 0.0)
    scene.blocks = torch.tensor([[[-0.5, 0.5], [0.5, -0.5]]])
    scene.colors = torch.tensor([[0, 2]])  # red, blue
    image = render_camera(scene, 32)[0].int()
    assert tuple(image[:, 8, 8].tolist()) == PALETTE["red"]
    assert tuple(image[:, 24, 24].tolist()) == PALETTE["blue"]
    assert tuple(image[:, 8, 24].tolist()) == TABLE


def test_the_camera_does_not_see_the_gripper_or_what_was_asked_for():
    scene = Scene.from_seeds(torch.arange(3), 3, 0.5)
    other = Scene(**vars(scene))
    other.gripper = torch.zeros(3, 2)
    other.target = (scene.target + 1) % 3
    other.place = (scene.place + 1) % 4
    other.is_push = ~scene.is_push
    assert torch.equal(render_camera(scene, 32), render_camera(other, 32))


def test_people_see_the_gripper_and_the_named_block():
    scene = Scene.from_seeds(torch.tensor([0]), 2, 0.0)
    scene.gripper = torch.tensor([[0.0, 0.0]])
    scene.blocks = torch.tensor([[[-0.5, 0.5], [0.5, -0.5]]])
    scene.target = torch.tensor([1])
    image = render_scene(scene, 160)[0].int()
    assert tuple(image[:, 80, 80].tolist()) == (40, 44, 52)
    ring = 80 - round(80 * (-0.5 + 0.145))  # between block and the end of its ring
    assert tuple(image[:, ring, 120].tolist()) == (255, 255, 255)
    above_other = 80 - round(80 * (0.5 + 0.145))
    assert tuple(image[:, above_other, 40].tolist()) == TABLE
