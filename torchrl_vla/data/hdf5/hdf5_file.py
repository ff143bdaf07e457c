"""Checked contents of an HDF5 file of demonstrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict

from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    STATE_KEY,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)

if TYPE_CHECKING:
    import h5py


def group(parent: h5py.Group, name: str, where: str) -> h5py.Group:
    """Return an entry of a group, or raise and list its entries."""
    if name not in parent:
        raise MissingKeyError(
            f"Hdf5Demonstrations: expected {name!r} in {where!r}, got only "
            f"{sorted(parent)}."
        )
    return parent[name]


def demo_names(data: h5py.Group) -> list[str]:
    """Return ``demo_<i>`` in the order of ``i``."""
    names = [name for name in data if name.startswith("demo_")]
    if not names:
        raise MissingKeyError(
            "Hdf5Demonstrations: expected 'demo_0', ... in 'data', got only "
            f"{sorted(data)}."
        )
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def masked_demos(
    file: h5py.File, names: list[str], filter_key: str | None
) -> list[str]:
    """Return the demonstrations that a mask of robomimic's lists, in order.

    Raises:
        MissingKeyError: the file has no such mask; lists those it has.
        SchemaError: the mask is empty, or lists demonstrations that do not exist.
    """
    if filter_key is None:
        return names
    masks = file.get("mask", {})
    if filter_key not in masks:
        raise MissingKeyError(
            f"Hdf5Demonstrations: expected filter_key (--filter-key) of "
            f"{sorted(masks)}, the masks of the file, got {filter_key!r}."
        )
    listed = {name.decode() for name in masks[filter_key][()].astype("S").tolist()}
    unknown = sorted(listed - set(names))
    if unknown or not listed:
        raise SchemaError(
            f"Hdf5Demonstrations: expected mask {filter_key!r} to list demonstrations "
            f"of the file, got {unknown or 'none'}. Choose another filter_key "
            "(--filter-key)."
        )
    return [name for name in names if name in listed]


def read_demo(
    data: h5py.Group, name: str, state_keys: Sequence[str], cameras: dict[str, str]
) -> tuple[TensorDict, tuple[tuple[str | int, ...], ...]]:
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


def column(parent: h5py.Group, key: str, name: str, count: int) -> h5py.Dataset:
    """Return an HDF5 dataset, checked to have one row per action."""
    found = group(parent, key, f"{name}/obs" if key != "rewards" else name)
    if len(found) != count or not count:
        raise SchemaError(
            f"Hdf5Demonstrations: expected one row of {key!r} for each action of "
            f"{name!r}, got {len(found)} for {count}."
        )
    return found


def libero_instruction(data: h5py.Group) -> str:
    """Return the instruction in a file of LIBERO's layout."""
    if "problem_info" not in data.attrs:
        raise MissingKeyError(
            "Hdf5Demonstrations: expected the attribute 'problem_info' of 'data' in a "
            f"file of layout 'libero', got only {sorted(data.attrs)}. Pass "
            "layout='robomimic' with instruction=..."
        )
    text = json.loads(data.attrs["problem_info"])["language_instruction"]
    return text.strip().strip('"')  # some of LIBERO's texts contain their quotes


def declared_metadata(
    path: Path,
    data: h5py.Group,
    state_keys: Sequence[str],
    cameras: Mapping[str, str] | None,
) -> RobotDatasetMetadata:
    """Return the metadata that the file itself declares."""
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
    """Return the metadata with the sizes and statistics of the frames.

    Raises:
        SchemaError: the metadata declare other sizes.
    """
    statistics = frame_statistics(frames, "Hdf5Demonstrations")
    state = statistics.get("state_statistics")
    sizes = {"action_dim": statistics["action_statistics"].dim}
    declared = {"action_dim": metadata.action_dim}
    if state is not None:
        sizes["state_dim"], declared["state_dim"] = state.dim, metadata.state_dim
    if any(declared[name] not in (None, size) for name, size in sizes.items()):
        raise SchemaError(
            f"Hdf5Demonstrations: expected {declared}, as the metadata "
            f"{metadata.dataset_id!r} declare, got {sizes}. Choose other state_keys "
            "(--state-keys), or correct the metadata."
        )
    return replace(metadata, **statistics)
