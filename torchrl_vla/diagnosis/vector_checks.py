"""Checks of the recorded numbers of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.data.label_bounds import beyond_bounds
from torchrl_vla.diagnosis.inspection import Problem, Row
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    FeatureStatistics,
    RobotDatasetMetadata,
)

#: Share of a dimension's range by which a stored statistic may miss the data's.
_TOLERANCE = 1e-3
#: Tolerance of a timestamp, as in LeRobot.
_TIME_TOLERANCE_S = 1e-4


def name_of(key: NestedKey) -> str:
    """Return a key as text, its parts joined by dots."""
    return key if isinstance(key, str) else ".".join(key)


def place(frames: TensorDictBase, row: int) -> str:
    """Return a row with its episode and frame as text."""
    episode, frame = (int(frames.get(key)[row]) for key in (EPISODE_KEY, FRAME_KEY))
    return f"row {row} (episode {episode}, frame {frame})"


def check_finite(frames: TensorDictBase) -> Iterator[Problem]:
    """Yield every entry with a NaN or an infinite number."""
    for key, value in frames.items(True, True):
        data = value.as_subclass(Tensor)
        if not data.is_floating_point():
            continue
        data = data.reshape(len(data), -1)
        bad = ~data.isfinite()
        if not bool(bad.any()):
            continue
        row, dim = (int(i) for i in bad.nonzero()[0])
        rows = bad.any(-1)
        message = (
            f"expected finite numbers, got {float(data[row, dim])} in dimension {dim}, "
            f"and others in {int(rows.sum()) - 1} more rows"
        )
        episodes = frames.get(EPISODE_KEY)[rows].unique().tolist()
        remedy = (
            "Repair those frames, or leave the episodes out: exclude_episodes="
            f"{episodes} (--exclude-episodes {' '.join(map(str, episodes))})."
        )
        yield Problem(f"{name_of(key)!r} {place(frames, row)}", message, remedy)


def check_episodes(frames: TensorDictBase) -> Iterator[Problem]:
    """Yield episodes of one frame, and frames that are not counted from 0."""
    episode = frames.get(EPISODE_KEY).as_subclass(Tensor)
    frame = frames.get(FRAME_KEY).as_subclass(Tensor)
    numbers, index, lengths = episode.unique(return_inverse=True, return_counts=True)
    short = numbers[lengths == 1].tolist()
    if short:
        row = int((episode == short[0]).nonzero()[0])
        yield Problem(
            place(frames, row),
            f"expected episodes of at least 2 frames, got 1 in {len(short)} episodes: "
            f"{short[:5]}",
            "Drop them: dataset.select_episodes(...).",
        )
    last = torch.zeros_like(numbers).scatter_reduce_(0, index, frame, "amax")
    wrong = numbers[last != lengths - 1].tolist()
    if wrong:
        row = int((episode == wrong[0]).nonzero()[0])
        yield Problem(
            f"{FRAME_KEY!r} {place(frames, row)}",
            f"expected frames from 0 on without gaps in episode {wrong[0]}, got "
            f"{int(lengths[numbers == wrong[0]])} frames up to "
            f"{int(last[numbers == wrong[0]])}",
            "Record it again, or drop the episode.",
        )


def check_timestamps(
    frames: TensorDictBase, rate_hz: float | None
) -> Iterator[Problem]:
    """Yield timestamps that are not those of the frame at the declared rate."""
    time_s = frames.get("timestamp", None)
    if time_s is None or rate_hz is None:
        return
    time_s = time_s.as_subclass(Tensor).double().flatten()
    expected = frames.get(FRAME_KEY).as_subclass(Tensor).double() / rate_hz
    rounding = time_s.abs() * torch.finfo(torch.float32).eps
    off = ((time_s - expected).abs() > _TIME_TOLERANCE_S + rounding).nonzero()
    if len(off):
        row = int(off[0])
        yield Problem(
            f"'timestamp' {place(frames, row)}",
            f"expected {float(expected[row]):.4f} s (frame / {rate_hz:g} Hz), got "
            f"{float(time_s[row]):.4f} s, and {len(off) - 1} more",
            "Correct the rate or the timestamps, or record again.",
        )


def check_bounds(
    frames: TensorDictBase, metadata: RobotDatasetMetadata
) -> Iterator[Problem]:
    """Yield actions beyond the bounds that the metadata declare."""
    actions = frames.get(ACTION_KEY).as_subclass(Tensor)
    outside = beyond_bounds(actions, metadata)
    low, high = metadata.action_low, metadata.action_high
    if low is None or high is None or not bool(outside.any()):
        return
    row, dim = (int(i) for i in outside.nonzero()[0])
    yield Problem(
        f"{ACTION_KEY!r} {place(frames, row)}",
        f"expected dimension {dim} in {low[dim]:g}..{high[dim]:g}, got "
        f"{float(actions[row, dim]):.6g}, and "
        f"{int(outside.any(-1).sum()) - 1} more rows are beyond the bounds",
        "Clamp the actions with clamp_labels(dataset) (`torchrl-vla train "
        "--clamp-labels`), or correct action_low and action_high.",
    )


def check_statistics(
    key: NestedKey, stored: FeatureStatistics, samples: Tensor, remedy: str
) -> Iterator[Problem]:
    """Yield what contradicts the data, and dimensions that hardly move, as notes.

    Args:
        key: of the feature.
        stored: its statistics.
        samples: ``[N, D]``, finite.
        remedy: how to get statistics of the data.
    """
    if stored.dim != samples.shape[-1]:
        message = f"expected statistics of {samples.shape[-1]} dimensions, got "
        yield Problem(
            f"statistics of {name_of(key)!r}", f"{message}{stored.dim}", remedy
        )
        return
    found = FeatureStatistics.from_samples(samples)
    spread = (found.max - found.min).clamp_min(1e-6)
    rounding = 8 * torch.finfo(torch.float32).eps * samples.abs().amax(0).double()
    for name in ("mean", "std", "min", "max"):
        ours, theirs = vars(stored)[name], vars(found)[name]
        gap = (ours - theirs).abs()
        off = (gap > _TOLERANCE * spread + rounding).nonzero().flatten().tolist()
        if off:
            dim = off[0]
            yield Problem(
                f"statistics of {name_of(key)!r}",
                f"expected {name} {float(theirs[dim]):.6g} in dimension {dim}, as in "
                f"the data, got {float(ours[dim]):.6g} (dimensions {off})",
                remedy,
            )
    yield from _still_dimensions(key, found, samples)


def _still_dimensions(
    key: NestedKey, found: FeatureStatistics, samples: Tensor
) -> Iterator[Problem]:
    constant = (found.max == found.min).nonzero().flatten().tolist()
    if constant:
        values = [round(float(found.min[dim]), 6) for dim in constant]
        message = f"dimensions {constant} are constant: {values}"
        remedy = "They are centred, not scaled."
        yield Problem(repr(name_of(key)), message, remedy, is_note=True)
    for dim in found.is_sparse.nonzero().flatten().tolist():
        message = (
            f"dimension {dim} moves so rarely (sparse) that its quantiles "
            f"{float(found.q01[dim]):.6g}..{float(found.q99[dim]):.6g} miss its range "
            f"{float(found.min[dim]):.6g}..{float(found.max[dim]):.6g}"
        )
        remedy = "Mode 'quantile' scales it by its range, too, with a warning."
        yield Problem(repr(name_of(key)), message, remedy, is_note=True)


def dimension_table(
    samples: Tensor,
    stored: FeatureStatistics | None,
    names: Sequence[str] | None,
    units: Sequence[str] | None,
) -> list[Row]:
    """Return one row per dimension: what the data have, and what is stored."""
    rows: list[Row] = []
    data = samples.double()
    for dim in range(data.shape[-1]):
        column = data[:, dim]
        row: dict[str, object] = {
            "dimension": dim if names is None else names[dim],
            "unit": "-" if units is None else units[dim],
            "min": _short(column.min()),
            "max": _short(column.max()),
            "mean": _short(column.mean()),
            "std": _short(column.std(correction=0)),
        }
        if stored is not None and dim < stored.dim:
            for name in ("min", "max", "mean", "std"):
                row[f"stored {name}"] = _short(vars(stored)[name][dim])
        rows.append(row)
    return rows


def _short(value: Tensor) -> float | str:
    number = float(value)
    return float(f"{number:.4g}") if isfinite(number) else str(number)
