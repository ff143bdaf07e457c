from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.recipes.relative_statistics import relative_action_statistics
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata


def make_dataset(**more) -> DemonstrationDataset:
    """Two episodes: joint 0 1 2 and 10 20, commanded one more; a gripper of 5."""
    state = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [10.0, 7.0], [20.0, 7.0]])
    action = torch.stack([state[:, 0] + 1, torch.full((5,), 5.0)], 1)
    frames = TensorDict(
        {
            "observation": {"state": state},
            "action": action,
            "episode_index": torch.tensor([0, 0, 0, 1, 1]),
            "frame_index": torch.tensor([0, 1, 2, 0, 1]),
            **more,
        },
        [5],
    )
    return DemonstrationDataset(frames, RobotDatasetMetadata("arm"), InstructionTable())


def test_every_pair_of_frames_of_an_episode_counts_once():
    found = relative_action_statistics(make_dataset(), [True, False], range(2))
    # At step 0 the joint is commanded 1 on, five times; at step 1 by 2, 2 and 11.
    expected = torch.tensor([1.0] * 5 + [2.0, 2.0, 11.0], dtype=torch.float64)
    assert found.count == 8
    assert found.mean.tolist() == [expected.mean().item(), 5.0]
    assert found.std[0].item() == pytest.approx(expected.std(correction=0).item())
    assert (found.min.tolist(), found.max.tolist()) == ([1.0, 5.0], [11.0, 5.0])


def test_steps_before_the_frame_count_only_where_they_are():
    found = relative_action_statistics(make_dataset(), [True, True], range(-1, 0))
    # The action of the frame before: 1 - 1, 2 - 2 and 11 - 20; 5 - 7.
    assert found.count == 3
    assert found.mean.tolist() == [-3.0, -2.0]


def test_frames_that_are_not_labeled_are_no_targets():
    is_labeled = torch.tensor([True, True, False, True, True])
    dataset = make_dataset(is_labeled=is_labeled)
    found = relative_action_statistics(dataset, [True, False], range(2))
    assert found.count == 6
    assert found.mean[0].item() == (4 * 1 + 2 + 11) / 6
