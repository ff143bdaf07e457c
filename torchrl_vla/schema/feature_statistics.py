"""Per-dimension statistics of a feature, for normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import MetadataError

_TENSORS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Hold mean, std, min, max and the 1 % and 99 % quantiles of a feature.

    Statistics are float64 so that JSON gives back the same bits. They refuse to
    exist when they cannot be true (NaN, min above max, negative std), because a
    normalization built on them would be wrong without a sign of it.

    Args:
        mean: ``[D]``, in the feature's own unit, like all that follow.
        std: ``[D]``, population standard deviation (divided by ``count``).
        min: ``[D]``.
        max: ``[D]``.
        q01: ``[D]``, exact 1 % quantile over all samples.
        q99: ``[D]``, exact 99 % quantile over all samples.
        count: number of samples behind the numbers.

    Raises:
        MetadataError: lists everything that cannot be true.

    Examples:
        >>> stats = FeatureStatistics.from_samples(torch.tensor([[0.0], [2.0]]))
        >>> stats.mean, stats.std, stats.count
        (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64), 2)
        >>> FeatureStatistics.from_dict(stats.to_dict()) == stats
        True
    """

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    q01: Tensor
    q99: Tensor
    count: int

    def __post_init__(self) -> None:
        for name in _TENSORS:
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            object.__setattr__(self, name, value)
        problems = list(self._problems())
        if problems:
            raise MetadataError("FeatureStatistics: " + " ".join(problems))

    def _problems(self) -> Any:
        shapes = {name: tuple(getattr(self, name).shape) for name in _TENSORS}
        if any(len(shape) != 1 for shape in shapes.values()):
            yield f"expected one-dimensional statistics, got shapes {shapes}."
            return
        if len(set(shapes.values())) != 1:
            yield f"expected statistics of one length, got shapes {shapes}."
            return
        if self.count < 1:
            yield f"expected count >= 1, got {self.count}."
        for name in _TENSORS:
            bad = (~getattr(self, name).isfinite()).nonzero().flatten().tolist()
            if bad:
                yield f"expected finite {name!r}, got non-finite values at {bad}."
        for low, high in (("min", "q01"), ("q01", "q99"), ("q99", "max")):
            lower, upper = getattr(self, low), getattr(self, high)
            bad = (lower > upper).nonzero().flatten().tolist()
            if bad:
                yield (
                    f"expected {low} <= {high}, got {low}={lower[bad].tolist()} and "
                    f"{high}={upper[bad].tolist()} at dimensions {bad}."
                )
        if bool((self.std < 0).any()):
            yield f"expected std >= 0, got {self.std.tolist()}."

    @classmethod
    def from_samples(cls, samples: Tensor) -> FeatureStatistics:
        """Compute exact statistics of samples ``[N, D]``.

        The quantiles are those of all samples together. (LeRobot stores averages
        of per-episode quantiles, which are not quantiles of the data.)

        Raises:
            MetadataError: not two-dimensional, empty, or non-finite.
        """
        if samples.ndim != 2 or not samples.shape[0]:
            raise MetadataError(
                "FeatureStatistics.from_samples: expected samples [N, D] with N >= 1, "
                f"got shape {tuple(samples.shape)}. Flatten batch and time first."
            )
        values = samples.detach().cpu().numpy().astype(np.float64)
        if not np.isfinite(values).all():
            rows = np.unique(np.argwhere(~np.isfinite(values))[:, 0])
            raise MetadataError(
                "FeatureStatistics.from_samples: expected finite samples, got "
                f"non-finite values in {len(rows)} rows, first {rows[:5].tolist()}. "
                "Repair or drop those frames."
            )
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        return cls(
            mean=torch.from_numpy(values.mean(0)),
            std=torch.from_numpy(values.std(0)),
            min=torch.from_numpy(values.min(0)),
            max=torch.from_numpy(values.max(0)),
            q01=torch.from_numpy(low),
            q99=torch.from_numpy(high),
            count=len(values),
        )

    @property
    def dim(self) -> int:
        """The number of dimensions ``D``."""
        return self.mean.shape[0]

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """Return the same statistics on another device."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return FeatureStatistics(**moved, count=self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers that JSON can hold without loss."""
        out: dict[str, Any] = {n: getattr(self, n).tolist() for n in _TENSORS}
        return {**out, "count": self.count}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureStatistics:
        """Read what :meth:`to_dict` wrote.

        Raises:
            MetadataError: a field is missing, unknown or of another type.
        """
        advice = "Recompute with FeatureStatistics.from_samples."
        caller = "FeatureStatistics.from_dict"
        return typed(values, cls, Origin(caller, "the values", advice, MetadataError))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureStatistics):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # holds tensors
