"""Exact statistics of features, in the format of LeRobot's files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: LeRobot's quantiles.
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
#: In the order in which LeRobot writes them.
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)

Statistics = dict[str, np.ndarray]


def number_statistics(values: np.ndarray) -> Statistics:
    """Compute the statistics of numbers ``[N, *shape]``.

    As in LeRobot, the statistics of a matrix are those of its last dimension, and
    ``count`` is ``N``.

    Examples:
        >>> stats = number_statistics(np.array([[0.0], [1.0], [5.0]]))
        >>> stats["mean"].tolist(), stats["q50"].tolist(), stats["count"].tolist()
        ([2.0], [1.0], [3])
    """
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    rows = rows.astype(np.float64)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class ImageHistogram:
    """Histogram of a camera's pixel values, per channel.

    The counts determine every statistic exactly, in constant memory, and the counts of
    parts add up to those of the whole.

    Args:
        n_frames: number of counted images.
        counts: int64 ``[3, 256]``, pixels of each value; None = zeros.

    Examples:
        >>> black_and_white = np.zeros((1, 2, 3), np.uint8)
        >>> black_and_white[0, 1] = 255
        >>> histogram = ImageHistogram()
        >>> histogram.add(black_and_white)
        >>> histogram.statistics()["mean"].flatten().tolist()
        [0.5, 0.5, 0.5]
    """

    def __init__(self, n_frames: int = 0, counts: np.ndarray | None = None) -> None:
        self.n_frames = n_frames
        self.counts = np.zeros((3, 256), np.int64) if counts is None else counts

    def add(self, image: np.ndarray) -> None:
        """Count the pixels of one image, uint8 ``[h, w, 3]``."""
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(image[..., channel].ravel(), minlength=256)
        self.n_frames += 1

    @classmethod
    def merge(cls, parts: Sequence[ImageHistogram]) -> ImageHistogram:
        """Add the counts of parts of the data."""
        counts = np.sum([part.counts for part in parts], axis=0)
        return cls(sum(part.n_frames for part in parts), counts)

    def statistics(self) -> Statistics:
        """Return statistics in 0..1, ``[3, 1, 1]``; ``count`` counts images."""
        per_channel = [_counted_statistics(counts) for counts in self.counts]
        out = {
            name: np.array([stats[name] for stats in per_channel])[:, None, None] / 255
            for name in STATISTICS
            if name != "count"
        }
        return {**out, "count": np.array([self.n_frames])}


def _counted_statistics(counts: np.ndarray) -> dict[str, float]:
    """Return the statistics of the values 0..255 with these counts."""
    values, total = np.arange(256.0), int(counts.sum())
    mean = float(counts @ values) / total
    ends = counts.cumsum()
    there = counts.nonzero()[0]
    out = {
        "min": float(there[0]),
        "max": float(there[-1]),
        "mean": mean,
        "std": float(np.sqrt(counts @ (values - mean) ** 2 / total)),
    }
    for name, fraction in QUANTILES.items():
        place = fraction * (total - 1)  # a position between two sorted values
        low, high = (
            float(np.searchsorted(ends, rank, side="right"))
            for rank in (np.floor(place), np.ceil(place))
        )
        out[name] = low + (place - np.floor(place)) * (high - low)
    return out
