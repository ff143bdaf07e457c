from __future__ import annotations

import pytest
import torch

from torchrl_vla.data.label_bounds import bound_labels
from torchrl_vla.schema import RobotDatasetMetadata, SchemaError

ARM = RobotDatasetMetadata(
    "arm", action_dim=2, action_low=(-1.0, 0.0), action_high=(1.0, 0.1)
)


def test_labels_within_the_bounds_stay_as_they_are():
    action = torch.tensor([[-1.0, 0.1], [0.5, 0.0]])
    bounded, changed = bound_labels("Demo", action, ARM, "refuse")
    assert torch.equal(bounded, action)
    assert changed == 0


def test_labels_beyond_are_clamped_and_their_frames_counted():
    action = torch.tensor([[-3.0, 0.4], [0.5, 0.05], [0.5, -2.0]])
    bounded, changed = bound_labels("Demo", action, ARM, "clamp")
    assert torch.equal(bounded, torch.tensor([[-1.0, 0.1], [0.5, 0.05], [0.5, 0.0]]))
    assert changed == 2


def test_labels_beyond_are_refused_by_name():
    action = torch.tensor([[0.0, 0.0], [0.0, 0.4]])
    with pytest.raises(SchemaError, match=r"0 \.\. 0\.1 .* 0\.4 at frame 1, dimensi"):
        bound_labels("Demo", action, ARM, "refuse")


def test_without_declared_bounds_nothing_is_beyond():
    metadata = RobotDatasetMetadata("arm", action_dim=1)
    action = torch.tensor([[1e6]], dtype=torch.bfloat16)
    bounded, changed = bound_labels("Demo", action, metadata, "refuse")
    assert bounded.dtype == torch.float32
    assert changed == 0


@pytest.mark.parametrize("choice", ["clamp", "refuse"])
def test_labels_that_are_no_numbers_are_refused_whatever_the_choice(choice):
    action = torch.tensor([[torch.nan, 0.0]])
    with pytest.raises(SchemaError, match="expected finite actions at 'action'"):
        bound_labels("Demo", action, ARM, choice)
    with pytest.raises(SchemaError, match=r"A = 2 at 'action', got \[1, 1\]"):
        bound_labels("Demo", torch.zeros(1, 1), ARM, choice)
