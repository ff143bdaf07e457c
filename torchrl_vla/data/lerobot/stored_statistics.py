"""The statistics that a LeRobot dataset stores, and exact ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_vla.data.lerobot.folder_layout import OWNER
from torchrl_vla.schema import FeatureStatistics, MetadataError

Stored = dict[str, dict[str, Tensor]]

STATISTICS = ("stored", "exact")


def read_stored(root: Path) -> Stored:
    """Read ``meta/stats.json``, or put ``meta/episodes_stats.jsonl`` together.

    Returns:
        Float64 statistics by LeRobot's feature and statistic (``mean``, ``std``,
        ``min``, ``max``, ``count`` and, in newer datasets, ``q01`` to ``q99``);
        empty where the dataset stores none.
    """
    whole = root / "meta" / "stats.json"
    if whole.is_file():
        return _tensors(json.loads(whole.read_text()))
    by_episode = root / "meta" / "episodes_stats.jsonl"
    if not by_episode.is_file():
        return {}
    lines = [line for line in by_episode.read_text().splitlines() if line.strip()]
    return merge([_tensors(json.loads(line)["stats"]) for line in lines])


def _tensors(stats: dict[str, dict[str, Any]]) -> Stored:
    return {
        feature: {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in values.items()
        }
        for feature, values in stats.items()
    }


def merge(parts: list[Stored]) -> Stored:
    r"""Put the statistics of parts of the data together.

    With :math:`n_i` frames of mean :math:`\mu_i` and standard deviation
    :math:`\sigma_i`, :math:`\mu = \sum n_i \mu_i / n` and
    :math:`\sigma^2 = \sum n_i (\sigma_i^2 + (\mu_i - \mu)^2) / n`, which is exact.
    Quantiles of parts do not give those of the whole: there are none in the result.
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

    Stored quantiles, which LeRobot averages over the episodes, are not the data's;
    see :class:`LeRobotDemonstrations`. Where rounding puts them outside of min and
    max, they are moved there. Quantiles that an old file lacks are computed.

    Raises:
        MetadataError: the stored statistics are missing or cannot be true.
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
            f"that can be true, got: {error} {advice}"
        ) from error


def _without_rounding(quantile: Tensor, low: Tensor, high: Tensor) -> Tensor:
    inside = quantile.clamp(low, high)
    close = (inside - quantile).abs() <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(close, inside, quantile)
