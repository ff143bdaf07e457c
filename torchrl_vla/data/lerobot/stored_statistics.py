"""Statistics of a LeRobot dataset, as stored or recomputed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.data.lerobot.folder_layout import OWNER, read_json_lines
from torchrl_vla.schema import FeatureStatistics, MetadataError

#: Float64 statistics by LeRobot's feature and statistic.
Stored = dict[str, dict[str, Tensor]]

STATISTICS = ("stored", "exact")


def read_stored(root: Path) -> Stored:
    """Read ``meta/stats.json``, or merge ``meta/episodes_stats.jsonl``.

    Returns:
        Float64 statistics by LeRobot's feature and statistic (``mean``, ``std``,
        ``min``, ``max``, ``count`` and, in newer datasets, ``q01`` to ``q99``);
        empty if the dataset stores none.
    """
    whole = root / "meta" / "stats.json"
    if whole.is_file():
        return _tensors(read_json(OWNER, whole))
    by_episode = root / "meta" / "episodes_stats.jsonl"
    if not by_episode.is_file():
        return {}
    return merge([_tensors(row["stats"]) for row in read_json_lines(by_episode)])


def _tensors(stats: Mapping[str, Mapping[str, object]]) -> Stored:
    return {
        feature: {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in values.items()
        }
        for feature, values in stats.items()
    }


def merge(parts: list[Stored]) -> Stored:
    r"""Merge the statistics of parts of the data.

    With :math:`n_i` frames of mean :math:`\mu_i` and standard deviation
    :math:`\sigma_i`, :math:`\mu = \sum n_i \mu_i / n` and
    :math:`\sigma^2 = \sum n_i (\sigma_i^2 + (\mu_i - \mu)^2) / n`, which is exact.
    Quantiles of the whole do not follow from those of parts and are left out.
    """
    return {feature: _merge([part[feature] for part in parts]) for feature in parts[0]}


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    mean, std, low, high = (
        torch.stack([part[name] for part in parts])
        for name in ("mean", "std", "min", "max")
    )
    count = torch.stack([part["count"].reshape(-1)[:1].squeeze(0) for part in parts])
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
    advice = "Pass statistics='exact' to compute them from all frames."
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
    except MetadataError as error:
        raise MetadataError(
            f"{OWNER}: expected statistics of {feature!r} in the dataset's 'meta/' "
            f"that are possible, got: {error} {advice}"
        ) from error


def _without_rounding(quantile: Tensor, low: Tensor, high: Tensor) -> Tensor:
    inside = quantile.clamp(low, high)
    close = (inside - quantile).abs() <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(close, inside, quantile)
