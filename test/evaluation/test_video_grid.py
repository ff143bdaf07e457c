from __future__ import annotations

import pytest
import torch

from torchrl_vla.evaluation.video_grid import video_grid


def video(length, value, size=3):
    return torch.full((length, 3, size, size), value, dtype=torch.uint8)


def test_each_episode_is_in_its_place_with_its_outcome_around_it():
    grid = video_grid([video(2, 10), video(4, 20), video(3, 30)], [True, False, True])
    assert grid.dtype == torch.uint8
    assert grid.shape == (4, 3, 22, 22)  # tiles of 3 + 2 * 4 pixels
    for time, (first, second, third) in enumerate(
        [
            ((128, 128, 128), (128, 128, 128), (128, 128, 128)),
            ((0, 200, 0), (128, 128, 128), (128, 128, 128)),
            ((0, 200, 0), (128, 128, 128), (0, 200, 0)),
            ((0, 200, 0), (220, 0, 0), (0, 200, 0)),
        ]
    ):
        assert tuple(grid[time, :, 0, 0].tolist()) == first
        assert tuple(grid[time, :, 0, 11].tolist()) == second
        assert tuple(grid[time, :, 11, 0].tolist()) == third
    centers = grid[:, 0, 5, 5], grid[:, 0, 5, 16], grid[:, 0, 16, 5]
    assert [center.tolist() for center in centers] == [[10] * 4, [20] * 4, [30] * 4]
    assert not grid[:, :, 11:, 11:].any()


def test_an_odd_grid_gets_another_pixel():
    assert video_grid([video(1, 1)], [True]).shape == (1, 3, 12, 12)
    assert video_grid([video(1, 1)] * 3, [True] * 3, columns=3).shape[2:] == (12, 34)


@pytest.mark.parametrize(
    ("videos", "successes"),
    [
        ([], []),
        ([video(1, 1)], []),
        ([video(1, 1), video(1, 1, 4)], [True, True]),
        ([video(1, 1).float()], [True]),
    ],
)
def test_what_is_no_grid_is_refused(videos, successes):
    with pytest.raises(ValueError, match=r"video_grid: expected at least one video"):
        video_grid(videos, successes)
