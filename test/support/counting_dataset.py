"""A dataset of one episode whose actions count."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
)


def counting_dataset(actions=(0.0, 1.0, 2.0, 3.0)) -> DemonstrationDataset:
    """Return one episode with these actions."""
    table = InstructionTable(["count"])
    count = len(actions)
    values = torch.tensor(actions)[:, None]
    frames = TensorDict(
        {
            "observation": {"state": torch.zeros(count, 1)},
            "language_instruction": table.ids.expand(count),
            "action": values,
            "episode_index": torch.zeros(count, dtype=torch.int64),
            "frame_index": torch.arange(count),
        },
        [count],
    )
    finite = values[values.isfinite().all(-1)]
    metadata = RobotDatasetMetadata(
        "counting",
        action_dim=1,
        action_statistics=FeatureStatistics.from_samples(finite),
    )
    return DemonstrationDataset(frames, metadata, table)
