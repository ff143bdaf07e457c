"""Inspection of demonstrations, ours, LeRobot's or in HDF5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tensordict import is_tensor_collection
from torch import Tensor

from torchrl_vla.data import (
    DemonstrationDataset,
    Demonstrations,
    Hdf5Demonstrations,
    LeRobotDemonstrations,
)
from torchrl_vla.data.frame_checks import NonFiniteError
from torchrl_vla.data.hdf5.hdf5_file import opened
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.diagnosis.inspection import Inspection, Problem, Row
from torchrl_vla.diagnosis.vector_checks import (
    check_bounds,
    check_episodes,
    check_finite,
    check_statistics,
    check_timestamps,
    dimension_table,
    name_of,
    place,
)
from torchrl_vla.evaluation.video_export import contact_sheet
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    IS_LABELED_KEY,
    STATE_KEY,
    MetadataError,
    VLAError,
)

_SHEET_EPISODES, _SHEET_COLUMNS, _MOST_CURVES = 3, 8, 16


def inspect_lerobot_dataset(path: Path) -> Inspection:
    """Inspect a LeRobot dataset, formats v2.1 and v3.0."""
    found: list[Problem] = []
    remedy = "Open it with statistics='exact', the default (--statistics exact)."
    read = partial(LeRobotDemonstrations.from_folder, path)
    try:
        dataset = _open(partial(read, statistics="stored"), found)
    except MetadataError as error:
        message = " ".join(str(error).split()).rstrip(".")
        found.append(Problem("'meta/' statistics", message, remedy))
        dataset = _open(read, found)
    return inspect_dataset(path, "LeRobot dataset", dataset, found, remedy)


def _open(read: Callable[..., Demonstrations], found: list[Problem]) -> Demonstrations:
    """Open demonstrations without the episodes whose numbers are not all finite."""
    try:
        return read()
    except NonFiniteError as error:
        found.extend(check_finite(error.frames))
        dataset = read(exclude_episodes=error.episodes)
        # The stored statistics are of all episodes, and are not compared.
        computed = frame_statistics(dataset.frames, "inspect_path")
        dataset.metadata = replace(dataset.metadata, **computed)
        return dataset


def inspect_own_dataset(path: Path) -> Inspection:
    """Inspect a folder that ``collect`` or ``to_folder`` wrote."""
    found: list[Problem] = []
    dataset = _open(partial(DemonstrationDataset.from_folder, path), found)
    remedy = "Compute them with FeatureStatistics.from_samples, and write it again."
    return inspect_dataset(path, "demonstration dataset", dataset, found, remedy)


def inspect_hdf5(path: Path) -> Inspection:
    """Inspect an HDF5 file of robomimic's or LIBERO's layout, with all that it holds.

    Every vector of ``obs`` counts as state, and every image as a camera.
    """
    with opened(path) as file:
        data = file["data"]
        is_libero = "problem_info" in data.attrs
        demo = data[min(name for name in data if name.startswith("demo_"))]
        obs = {key: value.shape for key, value in demo.get("obs", {}).items()}
    read = partial(
        Hdf5Demonstrations.from_file,
        path,
        layout="libero" if is_libero else "robomimic",
        state_keys=[key for key, shape in obs.items() if len(shape) <= 2],
        cameras={key: key for key, shape in obs.items() if len(shape) == 4} or None,
        flip_images="none" if any(len(shape) == 4 for shape in obs.values()) else None,
        instruction=None if is_libero else "(none in the file)",
    )
    layout = "LIBERO" if is_libero else "robomimic"
    found: list[Problem] = []
    dataset = _open(read, found)
    return inspect_dataset(path, f"HDF5 file of {layout}'s layout", dataset, found, "")


def inspect_dataset(
    path: Path | str,
    kind: str,
    dataset: Demonstrations,
    found: list[Problem],
    remedy: str,
) -> Inspection:
    """Inspect demonstrations that are open.

    Args:
        path: where they are.
        kind: what they are.
        dataset: the demonstrations.
        found: problems that opening them met.
        remedy: how to get statistics of the data.
    """
    frames = dataset.frames
    problems = [
        *found,
        *check_finite(frames),
        *check_episodes(frames),
        *check_timestamps(frames, dataset.metadata.control_frequency_hz),
        *check_bounds(frames, dataset.metadata),
        *_statistics(dataset, remedy),
        *_instructions(dataset),
    ]
    images, bad = _sample_images(dataset)
    problems += bad
    return Inspection(
        str(path),
        kind,
        facts=_facts(dataset),
        tables=_tables(dataset, images),
        problems=tuple(problems),
        pictures={
            f"{camera}: {len(videos)} episodes, from the first frame to the last": (
                contact_sheet([_to_rgb(video) for video in videos], _SHEET_COLUMNS)
            )
            for camera, videos in images.items()
        },
        curves=_curves(dataset),
    )


def _facts(dataset: Demonstrations) -> dict[str, object]:
    metadata = dataset.metadata
    episode = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    lengths = episode.unique(return_counts=True)[1]
    rate_hz = metadata.control_frequency_hz
    return {
        "name": metadata.dataset_id,
        "robot": metadata.embodiment_id or "undeclared",
        "episodes": dataset.num_episodes,
        "frames": len(dataset),
        "episode length": f"{int(lengths.min())} to {int(lengths.max())} frames, "
        f"median {int(lengths.median())}",
        "control rate": "undeclared" if rate_hz is None else f"{rate_hz:g} Hz",
        "duration": "unknown" if rate_hz is None else f"{len(dataset) / rate_hz:.1f} s",
        "action reference": ", ".join(
            dict.fromkeys(metadata.action_reference or ("undeclared",))
        ),
    }


def _tables(
    dataset: Demonstrations, images: dict[str, list[Tensor]]
) -> dict[str, list[Row]]:
    frames, metadata = dataset.frames, dataset.metadata
    features: list[Row] = [
        {
            "feature": name_of(key),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape[1:]),
        }
        for key, value in sorted(frames.items(True, True), key=lambda i: name_of(i[0]))
    ]
    cameras: list[Row] = [
        {
            "camera": camera,
            "dtype": str(videos[0].dtype).removeprefix("torch."),
            "[C, h, w]": list(videos[0].shape[1:]),
        }
        for camera, videos in images.items()
    ]
    tables = {"features": features, "cameras": cameras, "tasks": _tasks(dataset)}
    for name, key in (("actions", ACTION_KEY), ("states", STATE_KEY)):
        if (samples := frames.get(key, None)) is not None:
            kind = name.removesuffix("s")
            tables[name] = dimension_table(
                samples.as_subclass(Tensor),
                vars(metadata)[f"{kind}_statistics"],
                vars(metadata)[f"{kind}_names"],
                vars(metadata)[f"{kind}_units"],
            )
    return tables


def _tasks(dataset: Demonstrations) -> list[Row]:
    ids = dataset.frames.get(INSTRUCTION_KEY, None)
    if ids is None:
        return []
    ids = torch.as_tensor(ids).as_subclass(Tensor)
    episode = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    rows: list[Row] = []
    for number, text in zip(
        dataset.instructions.ids.tolist(), dataset.instructions, strict=True
    ):
        mine = episode[ids == number]
        rows.append(
            {"episodes": len(mine.unique()), "frames": len(mine), "instruction": text}
        )
    return rows


def _statistics(dataset: Demonstrations, remedy: str) -> Iterator[Problem]:
    metadata, frames = dataset.metadata, dataset.frames
    labeled = frames.get(IS_LABELED_KEY, None)
    for key, stored in (
        (ACTION_KEY, metadata.action_statistics),
        (STATE_KEY, metadata.state_statistics),
    ):
        samples = frames.get(key, None)
        if samples is None:
            continue
        samples = samples.as_subclass(Tensor)
        if key == ACTION_KEY and labeled is not None:
            samples = samples[labeled.as_subclass(Tensor).reshape(-1)]
        if stored is None:
            message = "expected statistics, which normalize it, got none"
            yield Problem(f"statistics of {name_of(key)!r}", message, remedy)
        elif bool(samples.isfinite().all()):  # else that is the problem
            yield from check_statistics(key, stored, samples, remedy)


def _instructions(dataset: Demonstrations) -> Iterator[Problem]:
    rows = _tasks(dataset)
    if not rows:
        message, remedy = "no instruction", "A policy that reads text needs one."
        yield Problem(repr(INSTRUCTION_KEY), message, remedy, is_note=True)
    for row in rows:
        if row["frames"] == 0:
            message = f"{row['instruction']!r} has no frame"
            yield Problem(repr(INSTRUCTION_KEY), message, "", is_note=True)


def _sample_images(
    dataset: Demonstrations,
) -> tuple[dict[str, list[Tensor]], list[Problem]]:
    """Return by camera the sampled images of some episodes ``[T, C, h, w]`` each."""
    episode = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    every = dataset.episodes
    picks = torch.linspace(0, len(every) - 1, min(_SHEET_EPISODES, len(every))).long()
    buffer = dataset.replay_buffer(1)
    images: dict[str, list[Tensor]] = {}
    problems: list[Problem] = []
    for number in every[picks].unique():
        rows = (episode == number).nonzero().flatten()
        rows = rows[torch.linspace(0, len(rows) - 1, _SHEET_COLUMNS).long()]
        try:
            value = buffer[rows].get(IMAGE_KEY, None)
        except (VLAError, ValueError, RuntimeError, OSError) as error:
            message = " ".join(str(error).split()).rstrip(".")
            where = f"images of {place(dataset.frames, int(rows[0]))} and on"
            problems.append(Problem(where, message, "Fetch or record it again."))
            continue
        if value is None:
            return {}, []
        cameras = value.items() if is_tensor_collection(value) else [("image", value)]
        for camera, video in cameras:
            images.setdefault(camera, []).append(video)
            flat = video.flatten(1)
            blank = (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist()
            if blank:
                row = int(rows[blank[0]])
                problems.append(
                    Problem(
                        f"camera {camera!r} {place(dataset.frames, row)}",
                        f"expected a picture, got {float(flat[blank[0], 0]):g} in "
                        f"every pixel, in {len(blank)} of {len(rows)} sampled frames",
                        "Check the camera, and drop the episode.",
                    )
                )
    return images, problems


def _to_rgb(video: Tensor) -> Tensor:
    if video.is_floating_point():
        video = (255 * video.clamp(0, 1)).round().to(torch.uint8)
    if video.shape[1] == 1:
        return video.expand(-1, 3, -1, -1)
    return video[:, :3]


def _curves(dataset: Demonstrations) -> dict[str, list[tuple[float, float]]]:
    """Return each dimension of the actions of the first episode over its frames."""
    episode = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    first = (episode == int(dataset.episodes[0])).nonzero().flatten()
    actions = dataset.frames.get(ACTION_KEY).as_subclass(Tensor)[first].double()
    frame = dataset.frames.get(FRAME_KEY).as_subclass(Tensor)[first].tolist()
    names = dataset.metadata.action_names
    count = min(actions.shape[-1], _MOST_CURVES)
    return {
        f"action {names[dim] if names else dim}": list(
            zip(frame, actions[:, dim].tolist(), strict=True)
        )
        for dim in range(count)
        if len(first) > 1 and bool(actions[:, dim].isfinite().all())
    }
