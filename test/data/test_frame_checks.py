from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset, aggregate
from torchrl_vla.data.frame_checks import NonFiniteError, check_finite_frames
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata, SchemaError


def make_frames():
    return TensorDict(
        {
            "action": torch.zeros(6, 2),
            "observation": {"state": torch.zeros(6, 3)},
            "episode_index": torch.tensor([4, 4, 4, 9, 9, 9]),
            "frame_index": torch.tensor([0, 1, 2, 0, 1, 2]),
        },
        [6],
    )


@given(
    st.sampled_from(["action", ("observation", "state")]),
    st.integers(0, 5),
    st.integers(0, 1),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
def test_the_number_is_named_by_episode_frame_and_dimension(key, row, dim, value):
    frames = make_frames()
    check_finite_frames("Demo", frames)
    frames[key][row, dim] = value
    episode, frame = (4, row) if row < 3 else (9, row - 3)
    with pytest.raises(SchemaError) as caught:
        check_finite_frames("Demo", frames)
    assert f"at {key!r}, got [{value}] at dimensions [{dim}] of frame {frame} of " in (
        str(caught.value)
    )
    assert f"episode {episode} (row {row})" in str(caught.value)
    assert f"exclude_episodes=[{episode}]" in str(caught.value)


def test_an_action_that_is_no_target_may_be_anything():
    frames = make_frames()
    frames["is_labeled"] = torch.tensor([[True]] * 5 + [[False]])
    frames["action"][5, 0] = float("nan")
    check_finite_frames("Demo", frames)
    assert frame_statistics(frames)["action_statistics"].count == 5
    frames["is_labeled"][5] = True
    with pytest.raises(SchemaError, match="of frame 2 of episode 9"):
        check_finite_frames("Demo", frames)


def test_no_dataset_of_ours_is_opened_or_made_with_such_numbers(tmp_path):
    frames = make_frames()
    frames["action"][4, 1] = float("nan")
    dataset = DemonstrationDataset(
        frames, RobotDatasetMetadata("arm"), InstructionTable()
    )
    folder = dataset.to_folder(tmp_path / "arm")
    with pytest.raises(SchemaError, match=r"DemonstrationDataset: .*episodes=\[9\]"):
        DemonstrationDataset.from_folder(folder)
    rest = DemonstrationDataset.from_folder(folder, exclude_episodes=[9])
    assert rest.episodes.tolist() == [4]
    with pytest.raises(SchemaError, match="of frame 1 of episode 1"):
        aggregate(dataset)


def test_the_refusal_says_what_it_refuses_and_survives_a_process_border():
    frames = TensorDict(
        {
            "action": torch.tensor([[0.0], [float("nan")]]),
            "episode_index": torch.tensor([0, 3]),
            "frame_index": torch.tensor([0, 0]),
        },
        [2],
    )
    with pytest.raises(NonFiniteError, match="exclude-episodes 3") as caught:
        check_finite_frames("Reader", frames)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.episodes) == (str(caught.value), (3,))
    assert again.frames["action"].isnan().any()
