"""Our samples against ``LeRobotDataset`` with ``delta_timestamps``, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_folders import record, write_folder

from torchrl_vla.data import LeRobotExperienceReplay
from torchrl_vla.data.lerobot.video_decoder import torchcodec_loads

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.filterwarnings("ignore"),  # what LeRobot's own packages warn of
]

FPS = 20
LENGTHS = (6, 3, 8, 5)
CHUNK, HISTORY = 4, 3
TASKS = ("push the block", "open the drawer")
CAMERAS = {
    "state": (),
    "image": ("observation.images.front", "observation.images.wrist"),
    "video": ("observation.images.front", "observation.images.wrist"),
    "one video": ("observation.image",),
}
DECODERS = ["pyav"] + (["torchcodec"] if torchcodec_loads() else [])


def write_with_lerobot(folder: Path, kind: str) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng = np.random.default_rng(0)
    numbers = {"observation.state": 3, "action": 2, "next.reward": 1}
    features = {
        name: {"dtype": "float32", "shape": (size,), "names": None}
        for name, size in numbers.items()
    }
    dtype = kind.split()[-1]
    for camera in CAMERAS[kind]:
        features[camera] = {
            "dtype": dtype,
            "shape": (32, 48, 3),
            "names": ["height", "width", "channels"],
        }
    dataset = LeRobotDataset.create(
        repo_id=f"local/{dtype}",
        fps=FPS,
        features=features,
        root=folder,
        robot_type="fake",
        use_videos=dtype == "video",
    )
    # Small enough that the episodes go to several files.
    dataset.meta.update_chunk_settings(
        data_files_size_in_mb=0.02, video_files_size_in_mb=0.004
    )
    for episode, length in enumerate(LENGTHS):
        for _ in range(length):
            frame = {
                name: rng.normal(size=size).astype(np.float32)
                for name, size in numbers.items()
            }
            for camera in CAMERAS[kind]:
                frame[camera] = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            dataset.add_frame(frame | {"task": TASKS[episode % 2]})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            path = tmp_path_factory.mktemp("lerobot") / kind.replace(" ", "_")
            made[kind] = write_with_lerobot(path, kind)
        return made[kind]

    return make


def open_with_lerobot(folder: Path, kind: str, decoder: str, episodes=None):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    past = [step / FPS for step in range(1 - HISTORY, 1)]
    deltas = {"action": [step / FPS for step in range(CHUNK)]}
    deltas |= dict.fromkeys(("observation.state", *CAMERAS[kind]), past)
    return LeRobotDataset(
        "local/any",
        root=folder,
        delta_timestamps=deltas,
        video_backend=decoder,
        episodes=episodes,
    )


def as_float(image: torch.Tensor) -> torch.Tensor:
    assert image.dtype == torch.uint8
    return image.to(torch.float32) / 255


def check_frame(ours, theirs, kind: str, instructions) -> None:
    assert torch.equal(ours["action_chunk"], theirs["action"])
    assert torch.equal(ours["action_is_pad"], theirs["action_is_pad"])
    assert torch.equal(ours["action"], theirs["action"][0])
    history = ours["observation_history"]
    assert torch.equal(history["state"], theirs["observation.state"])
    assert torch.equal(ours["observation", "state"], theirs["observation.state"][-1])
    assert torch.equal(ours["history_is_pad"], theirs["observation.state_is_pad"])
    for name in CAMERAS[kind]:
        camera = ("image", *name.split(".")[2:])
        assert torch.equal(as_float(history[camera]), theirs[name])
        assert torch.equal(as_float(ours["observation"][camera]), theirs[name][-1])
    for name in ("timestamp", "frame_index", "episode_index", "task_index"):
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(ours["dataset_index"], theirs["index"])
    assert torch.equal(ours["next", "reward"].squeeze(-1), theirs["next.reward"])
    assert instructions.decode(ours["language_instruction"]) == theirs["task"]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", CAMERAS)
def test_every_frame_is_what_lerobot_gives(folder, tmp_path, kind, decoder):
    theirs = open_with_lerobot(folder(kind), kind, decoder)
    replay = LeRobotExperienceReplay(
        folder(kind),
        7,
        chunk_size=CHUNK,
        history_size=HISTORY,
        decoder=decoder,
        cache_folder=tmp_path,
    )
    assert len(replay) == len(theirs) == sum(LENGTHS)
    for batch in replay.iter_epoch(seed=1):
        for ours in batch:
            frame = theirs[int(ours["index"])]
            check_frame(ours, frame, kind, replay.instructions)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_selected_episodes_are_what_lerobot_gives(folder, tmp_path, kind):
    theirs = open_with_lerobot(folder(kind), kind, "pyav", episodes=[1, 2])
    replay = LeRobotExperienceReplay(
        folder(kind),
        7,
        chunk_size=CHUNK,
        history_size=HISTORY,
        decoder="pyav",
        episodes=[1, 2],
        cache_folder=tmp_path,
    )
    assert len(replay) == len(theirs) == LENGTHS[1] + LENGTHS[2]
    for row in range(len(replay)):
        frame = theirs[row]
        check_frame(replay[[row]][0], frame, kind, replay.instructions)


def test_the_folders_lie_in_several_files(folder):
    assert len(list((folder("image") / "data").rglob("*.parquet"))) > 1
    assert len(list((folder("video") / "videos").rglob("*.mp4"))) > 2


def test_metadata_and_statistics_are_those_of_the_dataset(folder, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("local/any", root=folder("state"))
    stored, exact = (
        LeRobotExperienceReplay(
            folder("state"), 4, statistics=kind, cache_folder=tmp_path
        )
        for kind in ("stored", "exact")
    )
    metadata = stored.metadata
    assert metadata.control_frequency_hz == theirs.fps == FPS
    assert metadata.embodiment_id == theirs.meta.robot_type == "fake"
    for feature, name in (("action", "action"), ("state", "observation.state")):
        kept = getattr(metadata, f"{feature}_statistics")
        for statistic in ("mean", "std", "min", "max", "q01", "q99"):
            expected = torch.from_numpy(theirs.meta.stats[name][statistic])
            torch.testing.assert_close(
                getattr(kept, statistic), expected.double(), rtol=1e-6, atol=0
            )
    # What is wrong with LeRobot's quantiles: too far inside.
    kept, true = metadata.action_statistics, exact.metadata.action_statistics
    assert (kept.q01 > true.q01).all()
    assert (kept.q99 < true.q99).all()
    torch.testing.assert_close(kept.mean, true.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(kept.std, true.std, rtol=0, atol=1e-6)


def test_a_folder_written_by_hand_opens_in_lerobot_too(tmp_path):
    """So that the tests that do without LeRobot read what LeRobot would."""
    recording = record((3, 4))
    folder = write_folder(tmp_path / "push", recording, images="image")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("local/any", root=folder)
    replay = LeRobotExperienceReplay(folder, 4, cache_folder=tmp_path / "cache")
    for row in range(7):
        ours, frame = replay[[row]][0], theirs[row]
        assert torch.equal(ours["action"], frame["action"])
        image = ours["observation", "image", "wrist"]
        assert torch.equal(as_float(image), frame["observation.images.wrist"])
