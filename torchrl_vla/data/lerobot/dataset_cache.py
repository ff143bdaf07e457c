"""Cache of memory-mapped copies of LeRobot datasets."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from tensordict import TensorDict

from torchrl_vla._internal.durable_files import commit_folder, write_text
from torchrl_vla._internal.file_manifest import (
    check_manifest,
    checksum,
    write_manifest,
)
from torchrl_vla.data.lerobot.folder_layout import OWNER, Episode, LeRobotLayout
from torchrl_vla.data.lerobot.frame_table import COPY_AGAIN, read_frames, write_frames
from torchrl_vla.data.lerobot.video_decoder import VideoIndex
from torchrl_vla.schema import EPISODE_KEY, SchemaError

#: Part of the fingerprint: copies by another version of this reader are not used.
_READER_VERSION = 2


def default_cache_folder() -> Path:
    """Return the folder for copies of datasets in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torchrl_vla" / "lerobot"


def cached_copy(layout: LeRobotLayout, cache_folder: Path) -> Path:
    """Return the folder of the dataset's copy; create it if it does not exist.

    A copy belongs to one content: the folder's path, the size and modification time of
    every file below it (of those in ``meta/`` the bytes too), and the selection of
    features. It is written under a temporary name and renamed when it is complete, so
    the files of a killed process are never used. The dataset's own folder is not
    modified.

    Raises:
        SchemaError: the dataset or its copy is damaged.
    """
    copy = cache_folder / fingerprint(layout.root, repr(layout.selection))
    if copy.is_dir():
        check_manifest(OWNER, copy, COPY_AGAIN)
        return copy
    cache_folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=cache_folder))
    try:
        table = write_frames(layout, unfinished)
        write_text(unfinished / "instructions.json", table.to_json())
        frames, _ = read_frames(unfinished)
        for name, feature in layout.features.items():
            if feature.dtype == "video":
                write_videos(layout, name, frames, unfinished)
        write_manifest(unfinished)
        try:
            commit_folder(unfinished, copy)
        except OSError:  # another process has made the same copy
            if not copy.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def fingerprint(root: Path, selection: str = "") -> str:
    """Return a hash that changes with a dataset's content and what is read of it."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{_READER_VERSION} {root.resolve()} {selection}".encode())
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for path in (Path(place, file) for file in sorted(files)):
            name = path.relative_to(root).as_posix()
            about = "a dangling link"
            if path.is_file():
                about = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
                if name.startswith("meta/"):  # small; a time may be set back
                    about = f"{path.stat().st_mtime_ns} {checksum(path)}"
            digest.update(f"{os.fsencode(name)!r} {about}\n".encode())
    return digest.hexdigest()


def write_videos(
    layout: LeRobotLayout, name: str, frames: TensorDict, folder: Path
) -> None:
    """Write the video file and frame number of each row.

    Raises:
        SchemaError: a video has no frame at the time of a row, or frames of no row.
    """
    episode = frames.get(EPISODE_KEY).numpy()
    timestamp = frames.get("timestamp").numpy()
    paths = sorted({entry.clips[name].path for entry in layout.episodes})
    indices = [VideoIndex.from_file(path) for path in paths]
    file = np.zeros(len(episode), np.int32)
    frame = np.zeros(len(episode), np.int64)
    for entry in layout.episodes:
        rows = np.flatnonzero(episode == entry.index)
        which = paths.index(entry.clips[name].path)
        file[rows] = which
        frame[rows] = _find(layout, name, entry, indices[which], timestamp[rows])
    for which, path in enumerate(paths):
        _check_each_once(layout, name, path, frame[file == which], indices[which])
    folder = folder / "images" / name
    folder.mkdir(parents=True)
    np.save(folder / "file.npy", file)
    np.save(folder / "frame.npy", frame)
    np.savez(
        folder / "files.npz",
        paths=np.array([str(path.resolve()) for path in paths]),
        pts=np.concatenate([index.pts for index in indices]),
        is_key=np.concatenate([index.is_key for index in indices]),
        ends=np.cumsum([len(index.pts) for index in indices])[:-1],
        time_base_s=np.array([index.time_base_s for index in indices]),
    )


def _find(
    layout: LeRobotLayout,
    name: str,
    entry: Episode,
    index: VideoIndex,
    timestamp: np.ndarray,
) -> np.ndarray:
    clip = entry.clips[name]
    times_s = clip.start_s + timestamp.astype(np.float64)
    numbers, late_s = index.find(times_s)
    rounding = np.abs(timestamp) * np.finfo(np.float32).eps
    tolerance_s = layout.selection.tolerance_s
    off = np.flatnonzero(late_s > tolerance_s + rounding)
    if len(off):
        at = int(off[0])
        raise SchemaError(
            f"{OWNER}: expected a frame of {name!r} at {times_s[at]:.6f} s in "
            f"{str(clip.path.relative_to(layout.root))!r} for frame {at} of episode "
            f"{entry.index}, got the nearest {late_s[at]:.6f} s away: {len(index.pts)} "
            f"frames from {index.times_s[0]:.6f} to {index.times_s[-1]:.6f} s, "
            f"tolerance {tolerance_s} s. The video is unfinished or belongs to other "
            "data; if its times only drift, pass a larger tolerance_s (--tolerance-s). "
            "Without this camera: cameras=... (--cameras)."
        )
    return numbers


def _check_each_once(
    layout: LeRobotLayout, name: str, path: Path, numbers: np.ndarray, index: VideoIndex
) -> None:
    """Refuse a file in which a frame belongs to no row, or to two."""
    uses = np.bincount(numbers, minlength=len(index.pts))
    wrong = np.flatnonzero(uses != 1)
    if len(wrong):
        raise SchemaError(
            f"{OWNER}: expected as many frames as rows in "
            f"{str(path.relative_to(layout.root))!r} of {name!r}, got {len(uses)} "
            f"frames for {len(numbers)} rows; frame {wrong[0]} belongs to "
            f"{uses[wrong[0]]} rows. Frames of a discarded take shift the images of "
            "all that follow: fetch the dataset again or re-encode the video, or "
            "leave this camera out with cameras=... (--cameras)."
        )
