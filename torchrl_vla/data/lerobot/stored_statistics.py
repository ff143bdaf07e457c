"""Statistics of a LeRobot dataset, as stored or recomputed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json, read_json_lines
from torchrl_vla.data.lerobot.lerobot_feature import OWNER, Feature
from torchrl_vla.schema import (
    FeatureStatistics,
    MetadataError,
    check_statistics,
)

_NAMES = ("mean", "std", "min", "max", "q01", "q99")
#: Float64 statistics by LeRobot's feature and statistic.
Stored = dict[str, dict[str, Tensor]]

StatisticsSource = Literal["exact", "stored"]


class _Row(TypedDict):
    stats: Stored


_MERGED = ("mean", "std", "min", "max", "count")
_DELETE = (
    "Fetch the dataset again, or delete the file: statistics='exact' computes them "
    "from all frames."
)
_ADVICE = (
    "Pass statistics='exact' (--statistics exact) to compute them from all frames "
    "instead of reading 'meta/'."
)


def read_stored(root: Path) -> Stored:
    """Read ``meta/stats.json``, or merge ``meta/episodes_stats.jsonl``.

    Returns:
        Float64 statistics by LeRobot's feature and statistic (``mean``, ``std``,
        ``min``, ``max``, ``count`` and, in newer datasets, ``q01`` to ``q99``);
        empty if the dataset stores none.

    Raises:
        SchemaError: they are damaged.
    """
    whole = root / "meta" / "stats.json"
    if whole.is_file():
        return read_json(OWNER, whole, Stored, remedy=_DELETE)
    path = root / "meta" / "episodes_stats.jsonl"
    if not path.is_file():
        return {}
    rows = read_json_lines(OWNER, path, _Row, remedy=_DELETE)
    return merge([row["stats"] for row in rows], Origin.of_file(OWNER, path, _DELETE))


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
    stored: Stored, features: Sequence[Feature], samples: Tensor, statistics: str
) -> FeatureStatistics:
    """Return statistics of a vector, as stored or computed from ``samples``.

    Stored quantiles are averages over the episodes; see
    :class:`LeRobotDemonstrations`. Quantiles that an old file lacks are computed.

    Args:
        stored: by LeRobot's feature.
        features: whose concatenation ``samples`` is.
        samples: ``[N, D]``.
        statistics: ``"exact"`` or ``"stored"``.

    Raises:
        MetadataError: the stored statistics are missing, impossible, or not those of
            the samples.
    """
    if statistics == "exact":
        return FeatureStatistics.from_samples(samples)
    parts = []
    for feature in features:
        columns = slice(*(feature.columns or (None,)))
        own = samples[:, columns]
        values = dict(stored.get(feature.name, {}))
        if not {"q01", "q99"} <= set(values):
            computed = FeatureStatistics.from_samples(own)
            values |= {"q01": computed.q01, "q99": computed.q99}
        values["count"] = values.get("count", torch.tensor([len(samples)]))
        if values["count"].numel() != 1 or not values["count"].isfinite().all():
            raise MetadataError(
                f"{OWNER}: expected one count of {feature.name!r} in the dataset's "
                f"'meta/', got {values['count'].tolist()}. {_ADVICE}"
            )
        checked = check_statistics(
            OWNER,
            values,
            feature=feature.name,
            dim=feature.shape[0],
            needed=("mean", "std", "min", "max"),
            samples=own,
            advice=_ADVICE,
        )
        parts.append({name: checked[name] for name in _NAMES})
        count = int(values["count"].reshape(-1)[0])
    whole = {name: torch.cat([part[name] for part in parts]) for name in _NAMES}
    return FeatureStatistics(**whole, count=count)
