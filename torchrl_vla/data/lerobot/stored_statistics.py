"""Statistics of a LeRobot dataset, as stored or recomputed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json, read_json_lines
from torchrl_vla.data.lerobot.folder_layout import OWNER
from torchrl_vla.schema import FeatureStatistics, MetadataError, SchemaError

#: Float64 statistics by LeRobot's feature and statistic.
Stored = dict[str, dict[str, Tensor]]


class _Row(TypedDict):
    stats: Stored


_MERGED = ("mean", "std", "min", "max", "count")
_ADVICE = "Pass statistics='exact' to compute them from all frames."
STATISTICS = ("stored", "exact")


def read_stored(root: Path, statistics: str = "stored") -> Stored:
    """Read ``meta/stats.json``, or merge ``meta/episodes_stats.jsonl``.

    Args:
        root: the dataset's folder.
        statistics: ``"exact"`` = they are not needed; damaged ones are left out.

    Returns:
        Float64 statistics by LeRobot's feature and statistic (``mean``, ``std``,
        ``min``, ``max``, ``count`` and, in newer datasets, ``q01`` to ``q99``);
        empty if the dataset stores none.

    Raises:
        SchemaError: they are damaged.
    """
    try:
        return _read(root)
    except SchemaError:
        if statistics == "exact":
            return {}
        raise


def _read(root: Path) -> Stored:
    whole = root / "meta" / "stats.json"
    if whole.is_file():
        return read_json(OWNER, whole, Stored, remedy=_ADVICE)
    path = root / "meta" / "episodes_stats.jsonl"
    if not path.is_file():
        return {}
    rows = read_json_lines(OWNER, path, _Row, remedy=_ADVICE)
    return merge([row["stats"] for row in rows], Origin.of_file(OWNER, path, _ADVICE))


def merge(parts: list[Stored], origin: Origin) -> Stored:
    r"""Merge the statistics of parts of the data.

    With :math:`n_i` frames of mean :math:`\mu_i` and standard deviation
    :math:`\sigma_i`, :math:`\mu = \sum n_i \mu_i / n` and
    :math:`\sigma^2 = \sum n_i (\sigma_i^2 + (\mu_i - \mu)^2) / n`, which is exact.
    Quantiles of the whole do not follow from those of parts and are left out.

    Raises:
        SchemaError: a part lacks a number that another has, or has another shape.
    """
    if not parts:
        raise origin.refuse("statistics of each episode", "none")
    sizes = [_sizes(part) for part in parts]
    for row, size in enumerate(sizes):
        for feature, shapes in size.items() | sizes[0].items():
            if size.get(feature) != shapes or {*_MERGED} - {*dict(shapes)}:
                expected = f"{list(_MERGED)} of one shape in each line"
                got = f"{dict(size.get(feature, ()))} in line {row + 1}"
                raise origin.refuse(expected, got, feature)
    return {feature: _merge([part[feature] for part in parts]) for feature in parts[0]}


def _sizes(part: Stored) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    return {
        feature: tuple((n, tuple(values[n].shape)) for n in _MERGED if n in values)
        for feature, values in part.items()
    }


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    mean, std, low, high = (
        torch.stack([part[name] for part in parts])
        for name in ("mean", "std", "min", "max")
    )
    count = torch.stack([part["count"].flatten()[:1].sum() for part in parts])
    weight = (count / count.sum()).view(-1, *[1] * (mean.ndim - 1))
    whole = (weight * mean).sum(0)
    variance = (weight * (std**2 + (mean - whole) ** 2)).sum(0)
    return {
        "mean": whole,
        "std": variance.sqrt(),
        "min": low.amin(0),
        "max": high.amax(0),
        "count": count.sum().view(1),
    }


def feature_statistics(
    stored: Stored, feature: str, samples: Tensor, statistics: str
) -> FeatureStatistics:
    """Return the statistics of one feature, as stored or computed from ``samples``.

    Stored quantiles are averages over the episodes; see
    :class:`LeRobotDemonstrations`. Quantiles that rounding puts outside of min and max
    are clamped. Quantiles that an old file lacks are computed.

    Raises:
        MetadataError: the stored statistics are missing or impossible.
    """
    if statistics == "exact":
        return FeatureStatistics.from_samples(samples.reshape(len(samples), -1))
    advice = _ADVICE
    values = {k: v.reshape(-1) for k, v in stored.get(feature, {}).items()}
    missing = sorted({"mean", "std", "min", "max"} - set(values))
    if missing:
        raise MetadataError(
            f"{OWNER}: expected statistics of {feature!r} in the dataset's 'meta/', "
            f"got no {missing}. {advice}"
        )
    if not {"q01", "q99"} <= set(values):
        computed = FeatureStatistics.from_samples(samples.reshape(len(samples), -1))
        values |= {"q01": computed.q01, "q99": computed.q99}
    low, high = values["min"], values["max"]
    count = values.get("count", torch.tensor([float(len(samples))]))
    try:
        return FeatureStatistics(
            mean=values["mean"],
            std=values["std"],
            min=low,
            max=high,
            q01=_without_rounding(values["q01"], low, high),
            q99=_without_rounding(values["q99"], low, high),
            count=int(count[0]),
        )
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        raise MetadataError(
            f"{OWNER}: expected statistics of {feature!r} in the dataset's 'meta/' "
            f"that are possible, got: {error} {advice}"
        ) from error


def _without_rounding(quantile: Tensor, low: Tensor, high: Tensor) -> Tensor:
    inside = quantile.clamp(low, high)
    close = (inside - quantile).abs() <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(close, inside, quantile)
