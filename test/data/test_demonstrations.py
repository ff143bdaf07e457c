from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lerobot_steps import METADATA, TABLE, make_frames
from tensordict import TensorDict
from torchrl.data import TensorStorage

from torchrl_vla.data import (
    DemonstrationDataset,
    Demonstrations,
    LeRobotDemonstrations,
    LeRobotExperienceReplay,
    write_lerobot,
)
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata


class OwnDataset(Demonstrations):
    """The smallest dataset of a user's own."""

    def __init__(self, frames):
        self.frames = frames
        self.metadata = RobotDatasetMetadata("own")
        self.instructions = InstructionTable()
        self.storage = TensorStorage(frames)

    def select_episodes(self, episodes):
        return OwnDataset(
            self.frames[torch.isin(self.frames["episode_index"], episodes)]
        )


def own_frames():
    return TensorDict(
        action=torch.arange(6.0).view(6, 1),
        episode_index=torch.tensor([0, 0, 1, 1, 2, 2]),
        frame_index=torch.tensor([0, 1, 0, 1, 0, 1]),
    ).auto_batch_size_(1)


def test_a_dataset_of_ones_own_needs_its_frames_and_select_episodes():
    dataset = OwnDataset(own_frames())
    assert (len(dataset), dataset.num_episodes) == (6, 3)
    assert len(dataset.replay_buffer(4, seed=0).sample()) == 4
    first, second = dataset.split(1 / 3, seed=0)
    assert (len(first), len(second)) == (2, 4)
    assert repr(dataset) == "OwnDataset 'own': 3 episodes, 6 frames"


def test_an_error_of_split_names_the_class():
    with pytest.raises(ValueError, match=r"OwnDataset\.split: .* got 0\.0 of 3"):
        OwnDataset(own_frames()).split(0.0)


def test_a_tensordict_is_no_dataset():
    assert not isinstance(own_frames(), Demonstrations)
    assert isinstance(OwnDataset(own_frames()), Demonstrations)


def test_a_lerobot_dataset_never_samples_frames_without_a_label(tmp_path):
    frames = make_frames((3, 2), cameras=())
    labels = torch.tensor([True, False, True, False, True])
    frames["is_labeled"] = labels.unsqueeze(-1)
    recorded = DemonstrationDataset(frames, replace(METADATA, cameras=()), TABLE)
    folder = write_lerobot(recorded, tmp_path / "a", progress=False)
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    for buffer in (
        dataset.replay_buffer(64, seed=0),
        LeRobotExperienceReplay(dataset, 64, seed=0),
    ):
        assert buffer.sample()["dataset_index"].unique().tolist() == [0, 2, 4]


@pytest.mark.parametrize("labeled", [False, True], ids=["all", "labeled"])
def test_a_second_buffer_does_not_change_what_the_first_draws(labeled):
    frames = TensorDict(
        action=torch.arange(1000.0)[:, None],
        episode_index=torch.zeros(1000, dtype=torch.int64),
        frame_index=torch.arange(1000),
        batch_size=[1000],
    )
    if labeled:
        frames["is_labeled"] = torch.ones(1000, 1, dtype=torch.bool)
    dataset = DemonstrationDataset(
        frames, RobotDatasetMetadata("arm"), InstructionTable()
    )

    def draw(buffer):
        return [buffer.sample()["action"].flatten().tolist() for _ in range(3)]

    alone = draw(dataset.replay_buffer(8, seed=0))
    first = dataset.replay_buffer(8, seed=0)
    second = dataset.replay_buffer(8, seed=7)
    assert draw(first) == alone
    assert draw(second) == draw(dataset.replay_buffer(8, seed=7)) != alone
