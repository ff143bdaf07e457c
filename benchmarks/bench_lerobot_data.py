"""Sample frames with chunks of 50 from LeRobot datasets: ours against LeRobot's.

    pip install 'torchrl-vla[lerobot]'
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python benchmarks/bench_lerobot_data.py

The datasets are written by LeRobot itself into a temporary folder: state alone, two
cameras of 96 px as PNG in parquet, the same as mp4, and one camera of 480 x 640 as mp4
(LeRobot's AV1). LeRobot's side is ``LeRobotDataset`` with ``delta_timestamps`` of 50
actions under a shuffling ``DataLoader`` in this process. It gives floats; ours stays
uint8, and "ours, as floats" converts them too. Both decode videos with torchcodec
where it loads (it needs FFmpeg's libraries: ``apt-get install ffmpeg``), else with
PyAV. LeRobot decodes with a thread for each camera; ours does large images with one
for each core, and with a single one in "ours, 1 decoder". Before anything is timed,
frames, states, chunks and masks are compared. The last rows are the process's memory
in MiB after each of three epochs of ours.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from tensordict import TensorDictBase

from torchrl_vla.data import LeRobotExperienceReplay
from torchrl_vla.data.lerobot.video_decoder import decoder_name

HORIZON, WIDTH, FPS, BATCH = 50, 7, 20, 32


class Case(NamedTuple):
    """A kind of dataset."""

    title: str
    dtype: str
    size: tuple[int, int]
    cameras: tuple[str, ...]
    lengths: tuple[int, ...]


LONG, SHORT = tuple(range(100, 120)), tuple(range(100, 105))
CASES = (
    Case("state", "image", (0, 0), (), LONG),
    Case("PNG, 2 x 96 px", "image", (96, 96), ("front", "wrist"), LONG),
    Case("video, 2 x 96 px", "video", (96, 96), ("front", "wrist"), LONG),
    Case("video, 480 x 640 px", "video", (480, 640), ("front",), SHORT),
)
QUICK = tuple(case._replace(size=(64, 96), lengths=(15, 20)) for case in CASES)


def write(case: Case, folder: Path) -> None:
    """Write a dataset with LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (WIDTH,), "names": None}
    names = ["height", "width", "channels"]
    image = {"dtype": case.dtype, "shape": (*case.size, 3), "names": names}
    cameras = [f"observation.images.{camera}" for camera in case.cameras]
    dataset = LeRobotDataset.create(
        repo_id="local/benchmark",
        fps=FPS,
        features={
            "observation.state": vector,
            "action": vector,
            **dict.fromkeys(cameras, image),
        },
        root=folder,
        use_videos=case.dtype == "video",
        streaming_encoding=case.dtype == "video",
    )
    rng = np.random.default_rng(0)
    h, w = case.size
    y, x = np.mgrid[:h, :w]
    texture = rng.integers(0, 256, (h // 3, w // 3, 3))
    for length in case.lengths:
        for step in range(length):
            frame = {
                name: rng.normal(size=WIDTH).astype(np.float32)
                for name in ("observation.state", "action")
            }
            # Three gradients that move, and a corner of fine texture that does not:
            # some 16 kB a frame of 480 x 640, as in recordings of robots.
            colors = [
                x * 255 // max(w, 1) + 5 * step,
                y * 255 // max(h, 1),
                (x + y) // 2 + 3 * step,
            ]
            pixels = np.stack(colors, -1) % 256
            pixels[: h // 3, : w // 3] = texture
            frame |= dict.fromkeys(cameras, pixels.astype(np.uint8))
            dataset.add_frame(frame | {"task": "push the block"})
        dataset.save_episode()
    dataset.finalize()


def open_with_lerobot(folder: Path, decoder: str):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ahead = [step / FPS for step in range(HORIZON)]
    return LeRobotDataset(
        "local/benchmark",
        root=folder,
        delta_timestamps={"action": ahead},
        video_backend=decoder,
    )


def open_ours(folder: Path, decoder: str) -> LeRobotExperienceReplay:
    return LeRobotExperienceReplay(
        folder / "dataset",
        BATCH,
        chunk_size=HORIZON,
        decoder=decoder,
        seed=0,
        cache_folder=folder / "cache",
    )


def as_floats(sample: TensorDictBase) -> TensorDictBase:
    """Convert the images as LeRobot does."""
    for camera, image in sample["observation"].get("image", {}).items():
        sample["observation", "image", camera] = image.float() / 255
    return sample


def check(case: Case, ours: LeRobotExperienceReplay, theirs, n_frames: int) -> None:
    for row in torch.randperm(len(theirs))[:n_frames].tolist():
        expected, sample = theirs[row], as_floats(ours[[row]][0])
        pairs = {
            "action": sample["action_chunk"],
            "action_is_pad": sample["action_is_pad"],
            "observation.state": sample["observation", "state"],
        }
        for camera in case.cameras:
            name = f"observation.images.{camera}"
            pairs[name] = sample["observation", "image", camera]
        for name, found in pairs.items():
            title = f"{case.title}, {name} of row {row}"
            check_equal(title, {"LeRobot": expected[name], "ours": found})


def compare(case: Case, folder: Path, decoder: str, rounds: int) -> None:
    write(case, folder / "dataset")
    theirs = open_with_lerobot(folder / "dataset", decoder)
    ours = open_ours(folder, decoder)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # decoders are as many as cores
    single = open_ours(folder, decoder)
    os.sched_setaffinity(0, cores)
    check(case, ours, theirs, 16)
    loader = torch.utils.data.DataLoader(theirs, BATCH, shuffle=True, drop_last=True)
    batches = (batch for _ in itertools.count() for batch in loader)
    contestants = {"ours": ours.sample}
    if case.cameras:
        contestants["ours, as floats"] = lambda: as_floats(ours.sample())
    if len(case.cameras) == 1:
        contestants["ours, 1 decoder"] = single.sample
    contestants["LeRobot"] = lambda: next(batches)
    times = time_in_turns(contestants, rounds)
    columns = {
        name: (f"{1e3 * BATCH / np.median(spent):,.0f}/s",)
        for name, spent in times.items()
    }
    print_rows(case.title, times, "ours", columns)
    held = []
    for epoch in range(3):
        for _ in ours.iter_epoch(seed=epoch):
            pass
        held.append(resident_mib())
    numbers = " ".join(f"{mib:6.2f}" for mib in held)
    print(f"{case.title:<26}{'MiB after epochs':<18}{'':>19}   {numbers}")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    quick = read_quick(__doc__)
    if find_spec("lerobot") is None:
        raise SystemExit("Compares with LeRobot: pip install 'torchrl-vla[lerobot]'")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = decoder_name(None)
    print(
        f"batches of {BATCH}, H={HORIZON}, A={WIDTH}, {decoder}, 1 thread for torch; "
        "equal: checked"
    )
    print_head("ours", "median")
    for case in QUICK if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            compare(case, Path(folder), decoder, 2 if quick else 11)


if __name__ == "__main__":
    main()
