"""LeRobot folders of formats v2.1 and v3.0, written by hand, without LeRobot."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FPS = 10
HEIGHT, WIDTH = 16, 24
TASKS = ("push the block", "open the drawer")
CAMERAS = ("front", "wrist")
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Recording:
    """What the folder has to give back, by LeRobot's names, all rows."""

    columns: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    lengths: tuple[int, ...]

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *self.lengths])


def record(lengths=(5, 3, 7), *, cameras=CAMERAS, seed=0) -> Recording:
    """Random numbers and images; tasks alternate between episodes."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    columns = {
        "observation.state": rng.normal(size=(total, 3)).astype(np.float32),
        "observation.environment_state": rng.normal(size=(total, 2)).astype(np.float32),
        "action": rng.normal(size=(total, 2)).astype(np.float32),
        "next.reward": rng.normal(size=(total, 1)).astype(np.float32),
        "next.done": (frame == np.repeat(lengths, lengths) - 1)[:, None],
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(total),
        "task_index": episode % len(TASKS),
    }
    size = (total, HEIGHT, WIDTH, 3)
    names = [f"observation.images.{camera}" for camera in cameras]
    if cameras == ("image",):
        names = ["observation.image"]
    images = {name: rng.integers(0, 256, size, dtype=np.uint8) for name in names}
    return Recording(columns, images, tuple(lengths))


def statistics(values: np.ndarray, quantiles: bool) -> dict[str, Any]:
    values = values.reshape(len(values), -1).astype(np.float64)
    out = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "count": np.array([len(values)]),
    }
    if quantiles:
        out["q01"], out["q99"] = np.quantile(values, [0.01, 0.99], axis=0)
    return {name: value.tolist() for name, value in out.items()}


def encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="png")
    return stream.getvalue()


def encode_video(path: Path, images: np.ndarray, *, fps: int = FPS, gop: int = 4):
    """Write an mp4 that loses nothing, so that pixels can be compared."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"qp": "0", "g": str(gop), "bf": "2", "sc_threshold": "0"}
        stream = container.add_stream("libx264rgb", fps, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "rgb24"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_folder(
    folder: Path,
    recording: Recording,
    *,
    version: str = "v3.0",
    images: str = "image",
    files: int = 1,
) -> Path:
    """Write a dataset; ``files`` = into how many files v3.0 puts the episodes."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    write = _write_v30 if version == "v3.0" else _write_v21
    paths = write(folder, recording, images, files)
    features: dict[str, Any] = {}
    for name, values in recording.columns.items():
        shape = list(values.shape[1:]) or [1]
        names = [f"{name}_{i}" for i in range(shape[0])]
        dtype = values.dtype.name
        features[name] = {"dtype": dtype, "shape": shape, "names": names}
    for name in recording.images:
        features[name] = {
            "dtype": images,
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channels"],
        }
    info = {
        "codebase_version": version,
        "robot_type": "fake",
        "total_episodes": len(recording.lengths),
        "total_frames": sum(recording.lengths),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "features": features,
        **paths,
    }
    (meta / "info.json").write_text(json.dumps(info, indent=2))
    return folder


def edit_info(folder: Path, **changes: Any) -> Path:
    """Change entries of ``info.json``; None removes one."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in info.items() if v is not None}))
    return folder


def _write_v21(folder, recording, images, files) -> dict[str, str]:
    meta = folder / "meta"
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    _write_lines(meta / "tasks.jsonl", tasks)
    lines, stats = [], []
    for episode, length in enumerate(recording.lengths):
        start = int(recording.starts[episode])
        rows = slice(start, start + length)
        task = TASKS[episode % len(TASKS)]
        lines.append({"episode_index": episode, "tasks": [task], "length": length})
        by_feature = {
            name: statistics(values[rows], False)
            for name, values in recording.columns.items()
        }
        stats.append({"episode_index": episode, "stats": by_feature})
        name = f"episode_{episode:06d}"
        _write_table(folder / f"data/chunk-000/{name}.parquet", recording, rows, images)
        for key, values in recording.images.items():
            if images == "video":
                path = folder / f"videos/chunk-000/{key}/{name}.mp4"
                encode_video(path, values[rows])
    _write_lines(meta / "episodes.jsonl", lines)
    _write_lines(meta / "episodes_stats.jsonl", stats)
    place = "chunk-{episode_chunk:03d}"
    return {
        "data_path": f"data/{place}/episode_{{episode_index:06d}}.parquet",
        "video_path": (
            f"videos/{place}/{{video_key}}/episode_{{episode_index:06d}}.mp4"
        ),
    }


def _write_v30(folder, recording, images, files) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = folder / "meta"
    tasks = {"task_index": list(range(len(TASKS))), "task": list(TASKS)}
    pq.write_table(pa.table(tasks), meta / "tasks.parquet")
    stats = {k: statistics(v, True) for k, v in recording.columns.items()}
    (meta / "stats.json").write_text(json.dumps(stats))
    episodes = []
    for number, group in enumerate(
        np.array_split(np.arange(len(recording.lengths)), files)
    ):
        first = int(recording.starts[group[0]])
        rows = slice(first, int(recording.starts[group[-1] + 1]))
        name = f"chunk-000/file-{number:03d}"
        _write_table(folder / f"data/{name}.parquet", recording, rows, images)
        for key, values in recording.images.items():
            if images == "video":
                encode_video(folder / f"videos/{key}/{name}.mp4", values[rows])
        for episode in group.tolist():
            start, end = (int(row) for row in recording.starts[episode : episode + 2])
            entry = {
                "episode_index": episode,
                "tasks": [TASKS[episode % len(TASKS)]],
                "length": end - start,
                "data/chunk_index": 0,
                "data/file_index": number,
                "dataset_from_index": start,
                "dataset_to_index": end,
            }
            for key in recording.images if images == "video" else ():
                entry[f"videos/{key}/chunk_index"] = 0
                entry[f"videos/{key}/file_index"] = number
                entry[f"videos/{key}/from_timestamp"] = (start - first) / FPS
                entry[f"videos/{key}/to_timestamp"] = (end - first) / FPS
            episodes.append(entry)
    path = meta / "episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), path)
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    return {
        "data_path": f"data/{place}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4",
    }


def _write_table(path: Path, recording: Recording, rows: slice, images: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name, values in recording.columns.items():
        values = values[rows]
        flat = pa.array(values.reshape(-1))
        if values.ndim == 2 and values.shape[1] > 1:
            flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        columns[name] = flat
    for name, values in recording.images.items() if images == "image" else ():
        columns[name] = pa.array(
            [{"bytes": encode_png(image), "path": None} for image in values[rows]],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def decode(recording: Recording, row: int, size: int) -> tuple[Any, Any]:
    """The naive chunk of a row, and its mask."""
    episode = int(recording.columns["episode_index"][row])
    end = int(recording.starts[episode + 1])
    rows = [min(row + step, end - 1) for step in range(size)]
    chunk = torch.from_numpy(recording.columns["action"][rows])
    return chunk, torch.tensor([row + step >= end for step in range(size)])


def history_of(recording: Recording, row: int, size: int) -> tuple[list[int], Any]:
    """The rows of the naive history of a row, and its mask."""
    episode = int(recording.columns["episode_index"][row])
    start = int(recording.starts[episode])
    steps = range(row - size + 1, row + 1)
    return [max(step, start) for step in steps], torch.tensor(
        [step < start for step in steps]
    )
