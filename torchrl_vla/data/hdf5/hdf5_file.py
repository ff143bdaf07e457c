"""What an HDF5 file of demonstrations holds, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    STATE_KEY,
    FeatureStatistics,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)


def group(parent: Any, name: str, where: str) -> Any:
    """Return an entry of a group, or raise listing what it has."""
    if name not in parent:
        raise MissingKeyError(
            f"Hdf5Demonstrations: expected {name!r} in {where!r}, got only "
            f"{sorted(parent)}."
        )
    return parent[name]


def demo_names(data: Any) -> list[str]:
    """Return ``demo_<i>`` in the order of ``i``."""
    names = [name for name in data if name.startswith("demo_")]
    if not names:
        raise MissingKeyError(
            "Hdf5Demonstrations: expected 'demo_0', ... in 'data', got only "
            f"{sorted(data)}."
        )
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def read_demo(
    data: Any, name: str, state_keys: Sequence[str], cameras: dict[str, str]
) -> tuple[TensorDict, tuple]:
    """Return the frames of one demonstration and the shapes of its images."""
    demo = data[name]
    action = torch.from_numpy(group(demo, "actions", name)[()]).float()
    count = len(action)
    obs = group(demo, "obs", name) if state_keys or cameras else {}
    frames = TensorDict({}, [count])
    frames.set(ACTION_KEY, action)
    columns = [
        torch.from_numpy(column(obs, key, name, count)[()]).float().view(count, -1)
        for key in state_keys
    ]
    if columns:
        frames.set(STATE_KEY, torch.cat(columns, dim=-1))
    number = int(name.removeprefix("demo_"))
    frames.set(EPISODE_KEY, torch.full((count,), number, dtype=torch.int64))
    frames.set(FRAME_KEY, torch.arange(count))
    done = torch.zeros(count, 1, dtype=torch.bool)
    done[-1:] = True
    frames.set(("next", "done"), done)
    if "rewards" in demo:
        reward = torch.from_numpy(column(demo, "rewards", name, count)[()])
        frames.set(("next", "reward"), reward.float().view(count, 1))
    shapes = []
    for camera, key in cameras.items():
        image = column(obs, key, name, count)
        if image.dtype != "uint8" or image.ndim != 4 or image.shape[-1] != 3:
            raise SchemaError(
                f"Hdf5Demonstrations: expected uint8 images [T, h, w, 3] at "
                f"'{name}/obs/{key}', got {image.dtype} {list(image.shape)}."
            )
        shapes.append((camera, *image.shape[1:]))
    return frames, tuple(shapes)


def column(parent: Any, key: str, name: str, count: int) -> Any:
    """Return a dataset of one row per action."""
    found = group(parent, key, f"{name}/obs" if key != "rewards" else name)
    if len(found) != count or not count:
        raise SchemaError(
            f"Hdf5Demonstrations: expected one row of {key!r} for each action of "
            f"{name!r}, got {len(found)} for {count}."
        )
    return found


def libero_instruction(data: Any) -> str:
    """Return the instruction that a file of LIBERO's layout carries."""
    if "problem_info" not in data.attrs:
        raise MissingKeyError(
            "Hdf5Demonstrations: expected the attribute 'problem_info' of 'data' in a "
            f"file of layout 'libero', got only {sorted(data.attrs)}. Pass "
            "layout='robomimic' with instruction=..."
        )
    text = json.loads(data.attrs["problem_info"])["language_instruction"]
    return text.strip().strip('"')  # some of LIBERO's texts carry their quotes


def declared_metadata(
    path: Path,
    data: Any,
    state_keys: Sequence[str],
    cameras: Mapping[str, str] | None,
) -> RobotDatasetMetadata:
    """Return what the file itself says about its numbers."""
    kwargs = json.loads(data.attrs.get("env_args", "{}")).get("env_kwargs", {})
    robots = kwargs.get("robots", [])
    robots = [robots] if isinstance(robots, str) else robots
    obs = data[demo_names(data)[0]].get("obs", {})
    names = tuple(
        f"{key}_{i}"
        for key in state_keys
        for i in range(obs[key].size // len(obs[key]))
    )
    return RobotDatasetMetadata(
        path.stem,
        embodiment_id=robots[0] if len(robots) == 1 else None,
        state_names=names or None,
        control_frequency_hz=kwargs.get("control_freq"),
        cameras=tuple(cameras or ()),
    )


def with_statistics(
    metadata: RobotDatasetMetadata, frames: TensorDict
) -> RobotDatasetMetadata:
    """Return the metadata with sizes and statistics of the frames.

    Raises:
        SchemaError: they declare other sizes.
    """
    statistics = {
        name: FeatureStatistics.from_samples(frames.get(key))
        for name, key in (
            ("action_statistics", ACTION_KEY),
            ("state_statistics", STATE_KEY),
        )
        if frames.get(key, None) is not None
    }
    sizes = {f"{name.split('_')[0]}_dim": s.dim for name, s in statistics.items()}
    declared = {name: size for name in sizes if (size := getattr(metadata, name))}
    if any(sizes[name] != size for name, size in declared.items()):
        raise SchemaError(
            f"Hdf5Demonstrations: expected {declared}, as the metadata "
            f"{metadata.dataset_id!r} declare, got {sizes}. Choose other state_keys, "
            "or correct the metadata."
        )
    return replace(metadata, **statistics, **sizes)
