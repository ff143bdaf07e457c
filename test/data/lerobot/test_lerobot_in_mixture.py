"""LeRobot datasets of two robots in one mixture."""

from __future__ import annotations

import numpy as np
import torch
from lerobot_folders import record, write_folder

from torchrl_vla.data import LeRobotDemonstrations, MixtureReplay


def test_each_row_of_a_mixture_equals_that_of_its_lerobot_dataset(tmp_path):
    datasets = []
    for seed, images in enumerate(("image", "video")):
        recording = record((5, 3, 7), seed=seed)
        if seed:  # the second robot has a joint more
            action = recording.columns["action"]
            third = action[:, :1] - 2
            recording.columns["action"] = np.concatenate([action, third], axis=1)
        folder = write_folder(tmp_path / f"d{seed}", recording, images=images)
        cache = tmp_path / "cache"
        dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=cache)
        datasets.append(dataset)
    cameras = [
        {"eye": ("observation", "image", "front")},
        {"eye": ("observation", "image", "wrist")},
    ]
    mixture = MixtureReplay(
        datasets, [1, 1], batch_size=24, chunk_size=3, cameras=cameras, seed=3
    )
    batch = mixture.sample()
    assert batch["action_chunk"].shape == (24, 3, 3)
    assert set(batch["embodiment_index"].tolist()) == {0, 1}
    actions = mixture.denormalize(batch["action_chunk"], batch["embodiment_index"])
    for row in range(len(batch)):
        which = int(batch["embodiment_index"][row])
        alone, key = datasets[which], cameras[which]["eye"]
        frames = alone.frames
        same = (frames["episode_index"] == batch["episode_index"][row]) & (
            frames["frame_index"] == batch["frame_index"][row]
        )
        (position,) = same.nonzero().flatten().tolist()
        width = alone.metadata.action_dim
        assert batch["action_dim_is_pad"][row].tolist() == [
            dim >= width for dim in range(3)
        ]
        torch.testing.assert_close(
            actions[row, 0, :width], frames["action"][position], rtol=1e-5, atol=1e-5
        )
        image = alone.replay_buffer(1)[torch.tensor([position])][key][0]
        assert torch.equal(batch["observation", "image", "eye"][row], image)
