"""A LeRobot dataset, read by us and written by us, is what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_vla.data import LeRobotDemonstrations, VideoEncoding, write_lerobot

pytestmark = [
    pytest.mark.lerobot,
    # LeRobot 0.4.4, when it decodes a video and when it writes numbers.
    pytest.mark.filterwarnings("ignore:The video decoding and encoding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting input from bool:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

FPS, LENGTHS = 20, (6, 4, 9)
TASKS = ("stack the cups", "fold the towel", "stack the cups")
CAMERAS = ("observation.images.top", "observation.images.wrist")


def record(folder: Path, dtype: str) -> None:
    """Let LeRobot write a dataset."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    images = {
        name: {
            "dtype": dtype,
            "shape": (40, 56, 3),
            "names": ["height", "width", "channels"],
        }
        for name in CAMERAS
    }
    numbers = {
        "observation.state": ("float32", (4,), ["a", "b", "c", "d"]),
        "observation.force": ("float32", (2, 3), None),
        "action": ("float32", (3,), ["x", "y", "z"]),
        "next.reward": ("float32", (1,), None),
        "next.success": ("bool", (1,), None),
        "mode": ("int64", (1,), None),
    }
    features = {
        name: {"dtype": kind, "shape": shape, "names": names}
        for name, (kind, shape, names) in numbers.items()
    }
    dataset = LeRobotDataset.create(
        "local/first", FPS, features | images, root=folder, robot_type="arm"
    )
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 40)[:, None, None] + np.linspace(0, 1, 56)[:, None]
    for length, task in zip(LENGTHS, TASKS):
        for step in range(length):
            frame = {
                "next.success": np.array([step == length - 1]),
                "mode": rng.integers(0, 5, 1),
                "task": task,
            }
            for name, (kind, shape, _) in numbers.items():
                if kind == "float32":
                    frame[name] = rng.normal(size=shape).astype(np.float32)
            for name in CAMERAS:
                image = 255 * ((ramp + rng.random(3)) % 1)
                frame[name] = image.astype(np.uint8)
            dataset.add_frame(frame)
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def open_lerobot(folder: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/any", root=folder, video_backend="pyav")


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("image", {"images": "png"}),
        ("video", {"images": "png"}),
        ("video", {"images": VideoEncoding.lossless()}),
    ],
    ids=["images to images", "video to images", "video to lossless video"],
)
def test_the_content_is_equal_after_a_round_trip(tmp_path, dtype, options):
    record(tmp_path / "first", dtype)
    ours = LeRobotDemonstrations.from_folder(
        tmp_path / "first", cache_folder=tmp_path / "cache", decoder="pyav"
    )
    write_lerobot(ours, tmp_path / "second", progress=False, **options)
    first, second = (open_lerobot(tmp_path / name) for name in ("first", "second"))
    assert len(first) == len(second) == sum(LENGTHS)
    assert first.features.keys() == second.features.keys()
    for name, feature in first.features.items():
        if name not in CAMERAS:
            other = second.features[name]
            assert feature["dtype"] == other["dtype"], name
            assert tuple(feature["shape"]) == tuple(other["shape"]), name
            assert feature["names"] == other["names"], name
    assert (first.fps, first.meta.robot_type) == (second.fps, second.meta.robot_type)
    assert list(first.meta.tasks.index) == list(second.meta.tasks.index)
    for row in range(len(first)):
        expected, got = first[row], second[row]
        assert expected.keys() == got.keys()
        assert expected.pop("task") == got.pop("task")
        for name, value in expected.items():
            assert value.dtype == got[name].dtype, name
            assert torch.equal(value, got[name]), (row, name)
    for name, stats in first.meta.stats.items():
        if name not in CAMERAS:  # LeRobot's are of some frames
            for kind in ("mean", "std", "min", "max"):
                np.testing.assert_allclose(
                    second.meta.stats[name][kind],
                    stats[kind],
                    rtol=1e-5,
                    atol=1e-6,
                    err_msg=f"{name} {kind}",
                )
