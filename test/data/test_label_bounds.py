from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.data import (
    DemonstrationDataset,
    aggregate,
    check_labels,
    clamp_labels,
    write_lerobot,
)
from torchrl_vla.data.label_bounds import bound_labels
from torchrl_vla.diagnosis.vector_checks import check_bounds
from torchrl_vla.schema import (
    ArgumentTypeError,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)

ARM = RobotDatasetMetadata(
    "arm",
    action_low=(-1.0, 0.0),
    action_high=(1.0, 0.1),
    action_dim=2,
    control_frequency_hz=10.0,
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


def recorded(high):
    """One frame at the upper bound and one that is ``high``, in dimension 0."""
    frames = TensorDict(
        {
            "action": torch.tensor([[1.0, 0.0], [high, 0.0]]),
            "episode_index": torch.tensor([0, 0]),
            "frame_index": torch.tensor([0, 1]),
            "language_instruction": InstructionTable(["go"]).ids.expand(2),
        },
        [2],
    )
    return DemonstrationDataset(frames, ARM, InstructionTable(["go"]))


#: What each entry point does with labels: the number of frames beyond, or it raises.
COUNTS = {
    "clamp_labels": lambda d: clamp_labels(d).provenance.get("labels", {"frames": 0})[
        "frames"
    ],
    "bound_labels": lambda d: bound_labels("Demo", d.frames["action"], ARM, "clamp")[1],
    "inspect": lambda d: len(list(check_bounds(d.frames, ARM))),
}
REFUSALS = {
    "train": lambda d, _: check_labels("Demo", d),
    "bound_labels": lambda d, _: bound_labels(
        "Demo", d.frames["action"], ARM, "refuse"
    ),
    "aggregate": lambda d, _: aggregate(recorded(1.0), d),
    "write_lerobot": lambda d, folder: write_lerobot(d, folder, progress=False),
    "write_lerobot of a buffer": lambda d, folder: write_lerobot(
        d.replay_buffer(1), folder, metadata=ARM, instructions=d.instructions
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_rounding_is_within_the_bounds_and_more_is_counted_alike(name):
    # The range of dimension 0 is 2: the slack is 2e-5.
    assert COUNTS[name](recorded(1.0 + 1e-5)) == 0
    assert COUNTS[name](recorded(1.0 + 4e-5)) == 1


@pytest.mark.parametrize("name", REFUSALS)
def test_every_entry_point_refuses_labels_beyond_the_bounds(name, tmp_path):
    REFUSALS[name](recorded(1.0 + 1e-5), tmp_path / "within")
    with pytest.raises(SchemaError, match=r"expected .*within .*, got .*1\.5"):
        REFUSALS[name](recorded(1.5), tmp_path / "beyond")
    assert not (tmp_path / "beyond" / "meta").exists()


def test_what_is_no_dataset_is_not_aggregated():
    with pytest.raises(ArgumentTypeError, match=r"^aggregate: .* got str 'runs/mine'"):
        aggregate(recorded(1.0), "runs/mine")
