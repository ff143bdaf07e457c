"""Checked contents of an HDF5 file of demonstrations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch
from tensordict import TensorDict

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import parse
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    STATE_KEY,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
)

if TYPE_CHECKING:
    import h5py

T = TypeVar("T")

OWNER = "Hdf5Demonstrations"
REMEDY = "The copy or download was not finished: fetch the file again."

_DEMO = re.compile(r"demo_(0|[1-9]\d{0,17})")
# gzip packs at most a thousand equal bytes into one.
_MOST_PACKED, _ALWAYS_READ_BYTES = 1100, 1 << 24


class _Problem(TypedDict):
    language_instruction: str


class _EnvKwargs(TypedDict):
    robots: str | list[str] | None
    control_freq: float | None


class _EnvArgs(TypedDict):
    env_kwargs: _EnvKwargs | None


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; whatever h5py raises at its contents becomes our error.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaError: the file is damaged or of another kind.
    """
    h5py = import_extra("h5py", "datasets", OWNER)
    with (
        Origin.of_file(OWNER, path, REMEDY).reading("a whole HDF5 file"),
        h5py.File(path, "r") as file,
    ):
        yield file


def group(parent: h5py.Group, name: str, where: str) -> h5py.Group:
    """Return an entry of a group, which must lie in the file itself.

    Raises:
        MissingKeyError: there is none; lists the entries.
        SchemaError: it is a link to another file, which could be any; or it declares
            more numbers than the file can hold.
    """
    if name not in parent:
        raise MissingKeyError(
            f"Hdf5Demonstrations: expected {name!r} in {where!r}, got only "
            f"{sorted(parent)}."
        )
    found = parent[name]
    origin = Origin(OWNER, f"{where!r} of {parent.file.filename!r}", REMEDY)
    if found.file.filename != parent.file.filename:
        raise origin.refuse("data in the file itself", "a link to another", name)
    size = vars(type(found)).get("nbytes")
    if size is None:  # a group
        return found
    if found.is_virtual or found.external:
        raise origin.refuse("data in the file itself", "data of another", name)
    stored = found.id.get_storage_size()
    if found.nbytes > _MOST_PACKED * stored + _ALWAYS_READ_BYTES:
        got = f"{found.nbytes} declared bytes of {stored} stored ones"
        raise origin.refuse("numbers that are stored", got, name)
    return found


def demo_names(data: h5py.Group) -> list[str]:
    """Return ``demo_<i>`` in the order of ``i``."""
    names = [name for name in data if name.startswith("demo_")]
    if not names:
        raise MissingKeyError(
            "Hdf5Demonstrations: expected 'demo_0', ... in 'data', got only "
            f"{sorted(data)}."
        )
    odd = [name for name in names if not _DEMO.fullmatch(name)]
    if odd:
        origin = Origin(OWNER, repr(data.file.filename), REMEDY)
        raise origin.refuse("'demo_0', 'demo_1', ...", odd, "data")
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
    with Origin(OWNER, f"{name!r} of {data.file.filename!r}", REMEDY).reading(
        "a whole demonstration"
    ):
        return _read_demo(group(data, name, "data"), name, state_keys, cameras)


def _read_demo(
    demo: h5py.Group, name: str, state_keys: Sequence[str], cameras: dict[str, str]
) -> tuple[TensorDict, tuple[tuple[str | int, ...], ...]]:
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
    text = _attribute(data, "problem_info", _Problem)["language_instruction"]
    return text.strip().strip('"')  # some of LIBERO's texts contain their quotes


def _attribute(data: h5py.Group, name: str, kind: type[T]) -> T:
    """Return the JSON of an attribute, or of an empty object where there is none."""
    origin = Origin(OWNER, f"{name!r} of {data.file.filename!r}", REMEDY)
    with origin.reading("a text"):
        value = data.attrs.get(name, "{}")
        text = value.decode("utf-8") if type(value) is bytes else str(value)
    return typed(parse(text, origin), kind, origin)


def declared_metadata(
    path: Path,
    data: h5py.Group,
    state_keys: Sequence[str],
    cameras: Mapping[str, str] | None,
) -> RobotDatasetMetadata:
    """Return the metadata that the file itself declares."""
    env_args = _attribute(data, "env_args", _EnvArgs)
    kwargs = env_args["env_kwargs"] or {"robots": None, "control_freq": None}
    robots = kwargs["robots"] or []
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
        control_frequency_hz=kwargs["control_freq"],
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
