from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.envs.tabletop.scene import (
    BLOCK_RADIUS,
    CONTACT,
    MAX_SPEED,
    PALETTE,
    PLACES,
    Scene,
)


def make_scene(gripper, blocks, target=0, place="right", push=False):
    return Scene(
        gripper=torch.tensor([gripper]),
        speed=torch.ones(1),
        blocks=torch.tensor([blocks]),
        colors=torch.arange(len(blocks)).unsqueeze(0),
        target=torch.tensor([target]),
        place=torch.tensor([list(PLACES).index(place)]),
        is_push=torch.tensor([push]),
    )


def move(scene, x, y):
    scene.move(torch.tensor([[x, y]]))
    return scene


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), st.integers(2, 6))
def test_nothing_touches_at_the_start_and_everything_is_on_the_table(seeds, num_blocks):
    scene = Scene.from_seeds(torch.tensor(seeds), num_blocks, 0.5)
    points = torch.cat([scene.gripper.unsqueeze(1), scene.blocks], 1)
    assert points.abs().max() <= 0.7
    gaps = torch.cdist(points, points) + 9 * torch.eye(num_blocks + 1)
    assert gaps.min() >= 0.4 - 1e-6  # cells 0.6 apart, each off by 0.1 at most
    for colors in scene.colors.tolist():
        assert len(set(colors)) == num_blocks


def test_colors_targets_and_places_are_evenly_drawn():
    scene = Scene.from_seeds(torch.arange(6000), 3, 0.25)
    assert torch.bincount(scene.target).tolist() == pytest.approx([2000] * 3, rel=0.1)
    counts = torch.bincount(scene.target_color, minlength=len(PALETTE))
    assert counts.tolist() == pytest.approx([1000] * 6, rel=0.15)
    assert torch.bincount(scene.place).tolist() == pytest.approx([1500] * 4, rel=0.1)
    assert scene.is_push.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_an_action_of_one_moves_a_tenth_and_no_further():
    assert MAX_SPEED == 0.1
    scene = make_scene([0.0, 0.0], [[0.6, 0.6], [-0.6, 0.6]])
    assert move(scene, 1.0, -0.5).gripper[0].tolist() == pytest.approx([0.1, -0.05])
    assert move(scene, 9.0, 0.0).gripper[0].tolist() == pytest.approx([0.2, -0.05])


def test_the_gripper_stays_on_the_table():
    scene = make_scene([0.98, -0.98], [[0.0, 0.0], [0.5, 0.0]])
    assert move(scene, 1.0, -1.0).gripper[0].tolist() == [1.0, -1.0]


def test_stopping_over_the_named_block_reaches_it_and_passing_does_not():
    blocks = [[0.0, 0.0], [0.6, 0.0]]
    passing = move(make_scene([-0.1, 0.0], blocks), 1.0, 0.0)
    assert [flag.item() for flag in passing.outcome()] == [False, False]
    stopping = move(make_scene([-0.1, 0.0], blocks), 0.49, 0.0)
    assert [flag.item() for flag in stopping.outcome()] == [True, False]


def test_stopping_over_another_block_fails_and_over_the_table_does_nothing():
    blocks = [[0.0, 0.0], [0.6, 0.0]]
    wrong = move(make_scene([0.6, 0.05], blocks), 0.0, 0.0)
    assert [flag.item() for flag in wrong.outcome()] == [False, True]
    table = move(make_scene([0.0, BLOCK_RADIUS + 0.01], blocks), 0.0, 0.0)
    assert [flag.item() for flag in table.outcome()] == [False, False]


def test_a_pushed_block_moves_away_from_the_gripper_by_what_overlaps():
    scene = make_scene([-0.2, 0.0], [[0.0, 0.0], [0.0, 0.6]], push=True)
    move(scene, 1.0, 0.0)  # gripper at -0.1: the block is pushed out to CONTACT
    assert scene.blocks[0, 0].tolist() == pytest.approx([-0.1 + CONTACT, 0.0])
    assert scene.blocks[0, 1].tolist() == pytest.approx([0.0, 0.6])


def test_reaching_moves_no_block():
    scene = make_scene([-0.2, 0.0], [[0.0, 0.0], [0.0, 0.6]])
    for _ in range(3):
        move(scene, 1.0, 0.0)
    assert scene.blocks[0, 0].tolist() == [0.0, 0.0]


def test_a_pushed_block_pushes_the_next():
    scene = make_scene([-0.2, 0.0], [[0.0, 0.0], [0.23, 0.0]], push=True)
    move(scene, 1.0, 0.0)  # the named block goes to 0.05
    assert scene.blocks[0, 1, 0].item() == pytest.approx(0.05 + 2 * BLOCK_RADIUS)


@pytest.mark.parametrize("place", PLACES)
def test_a_named_block_at_its_place_is_a_success(place):
    x, y = PLACES[place]
    blocks = [[0.81 * x, 0.81 * y], [0.3, 0.3]]
    there = make_scene([0.0, 0.0], blocks, place=place, push=True)
    assert [flag.item() for flag in there.outcome()] == [True, False]
    blocks[0] = [0.79 * x, 0.79 * y]
    not_yet = make_scene([0.0, 0.0], blocks, place=place, push=True)
    assert [flag.item() for flag in not_yet.outcome()] == [False, False]


def test_touching_another_block_ends_a_push():
    scene = make_scene([0.0, 0.5], [[0.0, 0.0], [0.0, 0.6]], push=True)
    assert [flag.item() for flag in scene.outcome()] == [False, True]


def test_replacing_rows_takes_whole_tables():
    ours = Scene.from_seeds(torch.arange(4), 3, 0.5)
    theirs = Scene.from_seeds(torch.arange(10, 14), 3, 0.5)
    mixed = Scene(**vars(ours))
    mixed.replace(torch.tensor([False, True, False, True]), theirs)
    expected = Scene.from_seeds(torch.tensor([0, 11, 2, 13]), 3, 0.5)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(mixed, name), value)
