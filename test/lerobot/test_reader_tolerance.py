"""Our reader against LeRobot's on data that are not exact: drift, jitter, constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_folders import record, write_folder

from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.schema import SchemaError
from torchrl_vla.transforms import ActionScaling, StateScaling

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.filterwarnings("ignore"),  # what LeRobot's own packages warn of
]

FRONT = "observation.images.front"


def open_with_lerobot(folder, **options):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/any", root=folder, video_backend="pyav", **options)


def check_same(folder, tmp_path, *, tolerance_s, cameras=(FRONT,)):
    """Both readers give the same frames under the same tolerance."""
    theirs = open_with_lerobot(folder, tolerance_s=tolerance_s)
    ours = LeRobotDemonstrations.from_folder(
        folder, tolerance_s=tolerance_s, decoder="pyav", cache_folder=tmp_path / "cache"
    )
    whole = ours.replay_buffer(1)[:]
    assert len(whole) == len(theirs) > 0
    for mine, frame in zip(whole, (theirs[i] for i in range(len(theirs))), strict=True):
        assert torch.equal(mine["action"], frame["action"])
        assert torch.equal(mine["timestamp"], frame["timestamp"])
        for name in cameras:
            image = mine["observation", "image", name.split(".")[-1]]
            assert torch.equal(image.float() / 255, frame[name])
    return ours, theirs


@pytest.mark.parametrize("drift_s", [3e-4, -3e-4, 2e-3])
def test_a_clip_that_drifts_is_read_alike(tmp_path, drift_s):
    folder = write_folder(
        tmp_path / "d", record((4, 3), cameras=("front",)), images="video"
    )
    (path,) = folder.glob("meta/episodes/*/*.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[1][f"videos/{FRONT}/from_timestamp"] += drift_s
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(SchemaError, match="tolerance_s"):
        LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    with pytest.raises(Exception, match="tolerance"):
        open_with_lerobot(folder)[4]
    check_same(folder, tmp_path, tolerance_s=1e-2)


def test_measured_timestamps_are_read_alike(tmp_path):
    recording = record((4, 3), cameras=("front",))
    times = np.float32([0.0, 0.1003, 0.2011, 0.2998, 0.0, 0.0995, 0.2001])
    recording = replace(recording, columns={**recording.columns, "timestamp": times})
    for images in ("image", "video"):
        folder = write_folder(tmp_path / images, recording, images=images)
        check_same(folder, tmp_path, tolerance_s=1e-2)


def test_constant_and_sparse_dimensions_are_read_alike_and_normalize(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, count = tmp_path / "d", 400
    dataset = LeRobotDataset.create(
        repo_id="local/any",
        fps=20,
        features={
            name: {"dtype": "float32", "shape": (3,), "names": None}
            for name in ("action", "observation.state")
        },
        root=folder,
        robot_type="fake",
        use_videos=False,
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        values = rng.normal(size=(count, 3)).astype(np.float32)
        values[:, 1] = 0.0  # a joint that does not move
        values[:, 2] *= 1e-5
        values[7, 2] = 0.3  # a joint that moves once
        for value in values:
            frame = {"action": value, "observation.state": value, "task": "push"}
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    ours, _ = check_same(folder, tmp_path, tolerance_s=1e-4, cameras=())
    stored = LeRobotDemonstrations.from_folder(
        folder, statistics="stored", cache_folder=tmp_path / "cache"
    )
    for found in (ours, stored):
        for kind in (ActionScaling, StateScaling):
            scaling = kind.from_metadata(found.metadata, "quantile")
            normalized = scaling.normalize(ours.frames["action"])
            assert normalized.abs().amax(0)[1] == 0.0
            assert normalized.abs().max() < 40
