from __future__ import annotations

import pytest
import torch

from torchrl_vla.schema import MissingKeyError
from torchrl_vla.transforms import EpisodeIndex


def test_frames_and_their_episodes_ends_are_found_in_any_order():
    episode = torch.tensor([1, 0, 1, 0, 0])
    frame = torch.tensor([1, 2, 0, 0, 1])
    index = EpisodeIndex(episode, frame)
    assert len(index) == 2
    position, last = index.find(torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))
    assert index.order[position].tolist() == [[4, 2]]
    assert index.order[last].tolist() == [[1, 0]]


def test_an_episode_may_have_lost_its_head():
    index = EpisodeIndex(torch.tensor([3, 3]), torch.tensor([7, 8]))
    position, last = index.find(torch.tensor([3]), torch.tensor([7]))
    assert (position.tolist(), last.tolist()) == ([0], [1])


@pytest.mark.parametrize(("episode", "frame"), [(3, 6), (3, 9), (2, 7), (4, 0)])
def test_a_frame_that_is_not_stored_raises(episode, frame):
    index = EpisodeIndex(torch.tensor([3, 3]), torch.tensor([7, 8]))
    message = rf"got frame {frame} of episode {episode} at index \[0\]"
    with pytest.raises(MissingKeyError, match=message):
        index.find(torch.tensor([episode]), torch.tensor([frame]))


def test_positions_count_the_frames_in_order_and_rows_where_they_lie():
    index = EpisodeIndex(torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0]))
    position, last = index.find(torch.tensor([1, 0]), torch.tensor([0, 0]))
    assert (position.tolist(), last.tolist()) == ([1, 0], [2, 0])
    assert index.order.tolist() == [1, 2, 0]
    assert EpisodeIndex(torch.tensor([0, 0]), torch.tensor([4, 5])).order is None
