from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset, RowSampler
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ActionChunkTransform

TABLE = InstructionTable(["push"])


def make_dataset(labels):
    count = len(labels)
    frames = TensorDict(
        {
            "observation": {"state": torch.arange(float(count)).unsqueeze(-1)},
            "language_instruction": TABLE.ids.expand(count),
            "action": torch.arange(float(count)).unsqueeze(-1),
            "is_labeled": torch.tensor(labels).unsqueeze(-1),
            "episode_index": torch.zeros(count, dtype=torch.int64),
            "frame_index": torch.arange(count),
        },
        [count],
    )
    statistics = FeatureStatistics.from_samples(frames["action"])
    metadata = RobotDatasetMetadata("d", action_statistics=statistics)
    return DemonstrationDataset(frames, metadata, TABLE)


def test_rows_are_sampled_uniformly_and_other_rows_never():
    sampler = RowSampler(torch.tensor([1, 4, 5]))
    sampler._rng = torch.Generator().manual_seed(0)
    drawn, _ = sampler.sample(None, 9000)
    counts = torch.bincount(drawn, minlength=7)
    assert counts[[0, 2, 3, 6]].sum() == 0
    spread = (9000 * 1 / 3 * 2 / 3) ** 0.5
    assert ((counts[[1, 4, 5]] - 3000).abs() < 4 * spread).all()


def test_a_seed_gives_the_same_batches():
    buffers = [make_dataset([True, False, True]).replay_buffer(8, seed=3) for _ in "ab"]
    first, second = ([b.sample()["frame_index"] for _ in range(4)] for b in buffers)
    assert torch.equal(torch.cat(first), torch.cat(second))


def test_frames_without_a_label_are_not_sampled_but_remain_in_histories():
    dataset = make_dataset([True, False, True, True])
    buffer = dataset.replay_buffer(
        200,
        history_size=2,
        transform=ActionChunkTransform(2, storage=dataset.storage),
        seed=0,
    )
    sample = buffer.sample()
    assert sample["frame_index"].unique().tolist() == [0, 2, 3]
    third = sample[sample["frame_index"] == 2][0]
    assert third["observation_history", "state"].flatten().tolist() == [1.0, 2.0]
    first = sample[sample["frame_index"] == 0][0]
    assert first["action_is_pad"].tolist() == [False, True]


def test_a_dataset_without_any_label_is_refused():
    with pytest.raises(SchemaError, match=r"at least one row .* Nothing is left"):
        make_dataset([False, False]).replay_buffer(4)


def test_the_rows_travel_with_the_state():
    sampler, other = RowSampler(torch.tensor([3])), RowSampler(torch.tensor([1]))
    other.load_state_dict(sampler.state_dict())
    assert other.sample(None, 2)[0].tolist() == [3, 3]
