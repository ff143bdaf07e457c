"""Per-dimension statistics of a feature, for normalization."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import MetadataError

_TENSORS = ("mean", "std", "min", "max", "q01", "q99")
#: Statistics in the order in which their values ascend.
_ASCENDING = ("min", "q01", "q10", "q50", "q90", "q99", "max")
#: Slack of numbers that histograms and float32 have rounded: relative and absolute.
_ROUNDING, _TINY = 1e-6, 1e-9
#: Farther outside of its quantiles, in half ranges, an extreme is motion they miss.
_SPARSE_REACH = 40.0


def check_statistics(
    owner: str,
    values: Mapping[str, Any],
    *,
    feature: str | None = None,
    dim: int | None = None,
    needed: tuple[str, ...] = (),
    samples: Tensor | None = None,
    mask: Tensor | None = None,
    advice: str = "Repair the statistics, or recompute them from the data.",
) -> dict[str, Tensor]:
    """Return statistics that can be true; every pair that normalizes passes here.

    Checked are numbers of one width, finite, ``min <= q01 <= ... <= q99 <= max``,
    ``min <= mean <= max``, ``low < high``, ``std >= 0``, and that no sample lies
    outside of min and max. A mean or quantile that rounding puts outside of min and
    max, as LeRobot's histograms do, is clamped to them.

    Args:
        owner: starts the error message.
        values: any of ``mean``, ``std``, ``min``, ``max``, ``low``, ``high`` and
            quantiles by name, ``[D]`` or LeRobot's ``[C, 1, 1]`` of a camera; other
            entries are left out.

    Keyword Args:
        feature: that they belong to, for the message.
        dim: ``D``, the width of the feature; None = any.
        needed: names that must be among ``values``.
        samples: ``[N, D]``, data behind the statistics.
        mask: bool ``[D]``, True = check this dimension. None = all.
        advice: ends the message.

    Returns:
        Float64 ``[D]`` on the CPU, by name.

    Raises:
        MetadataError: lists everything that cannot be true.

    Examples:
        >>> lerobot = {"min": [0.0], "max": [0.0], "q99": [4e-14]}
        >>> check_statistics("Demo", lerobot)["q99"]
        tensor([0.], dtype=torch.float64)
    """
    what = "" if feature is None else f" statistics of {feature!r}:"
    wrong = [f"expected {name!r}, got none." for name in needed if name not in values]
    found: dict[str, Tensor] = {}
    for name in (*_ASCENDING, "mean", "std", "low", "high", "count"):
        if name in values:
            try:
                found[name] = _vector(values[name])
            except (TypeError, ValueError, RuntimeError, OverflowError):
                wrong.append(f"expected {name!r} to be numbers, got {values[name]!r}.")
    count = found.pop("count", torch.ones(1))
    if not (count >= 1).all():
        wrong.append(f"expected count >= 1, got {count.tolist()}.")
    dim = dim if samples is None else samples.shape[-1]
    wrong += _shape_problems(found, dim)
    if not wrong:
        used = torch.ones_like(next(iter(found.values()), torch.ones(0))).bool()
        used = used if mask is None else mask.cpu()
        wrong = [
            *(
                f"expected finite {name!r}, got {name}={value.tolist()} "
                f"at dimensions {bad}."
                for name, value in found.items()
                if (bad := _dims(used & ~value.isfinite()))
            ),
            *_order_problems(found, used),
            *_sample_problems(found, used, samples),
        ]
    if wrong:
        raise MetadataError(f"{owner}:{what} {' '.join(wrong)} {advice}")
    if "min" in found and "max" in found:
        for name in {*found} - {"min", "max", "std", "low", "high"}:
            found[name] = found[name].clamp(found["min"], found["max"])
    return found


def _vector(value: Any) -> Tensor:
    """Return ``[D]`` of ``[D]`` or ``[C, 1, 1]``; a single number remains one."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    return tensor.flatten() if tensor.shape[1:].numel() == 1 and tensor.ndim else tensor


def _shape_problems(found: dict[str, Tensor], dim: int | None) -> Iterator[str]:
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if any(len(shape) != 1 for shape in shapes.values()):
        yield f"expected one-dimensional statistics, got shapes {shapes}."
    elif len(set(shapes.values())) > 1:
        yield f"expected statistics of one length, got shapes {shapes}."
    elif dim is not None and any(shape != (dim,) for shape in shapes.values()):
        width = next(iter(shapes.values()))[0]
        yield (
            f"expected the width {dim} of the feature, got {width}: "
            "they belong to another one."
        )


def _slack(*values: Tensor) -> Tensor:
    size = torch.stack(values).abs().amax(0)
    return _TINY + _ROUNDING * size


def _order_problems(found: dict[str, Tensor], used: Tensor) -> Iterator[str]:
    chain = [name for name in _ASCENDING if name in found]
    pairs = [*itertools.pairwise(chain), ("min", "mean"), ("mean", "max")]
    for low, high in pairs:
        if low in found and high in found:
            lower, upper = found[low], found[high]
            above = used & (lower > upper + _slack(lower, upper))
            if bad := _dims(above):
                yield _ordered(low, "<=", high, lower, upper, bad)
    if "low" in found and "high" in found:
        lower, upper = found["low"], found["high"]
        if bad := _dims(used & (lower >= upper)):
            yield _ordered("low", "<", "high", lower, upper, bad)
    if "std" in found and (bad := _dims(used & (found["std"] < 0))):
        got = found["std"][bad].tolist()
        yield f"expected std >= 0, got {got} at dimensions {bad}."


def _ordered(
    low: str, sign: str, high: str, lower: Tensor, upper: Tensor, bad: list[int]
) -> str:
    return (
        f"expected {low} {sign} {high}, got {low}={lower[bad].tolist()} and "
        f"{high}={upper[bad].tolist()} at dimensions {bad}."
    )


def _sample_problems(
    found: dict[str, Tensor], used: Tensor, samples: Tensor | None
) -> Iterator[str]:
    if samples is None or not {"min", "max"} <= set(found):
        return
    low, high = (end.cpu() for end in samples.double().aminmax(dim=0))
    slack = _slack(low, high)
    below = low < found["min"] - slack
    if bad := _dims(used & (below | (high > found["max"] + slack))):
        yield (
            f"expected min and max of the data, got {found['min'][bad].tolist()} to "
            f"{found['max'][bad].tolist()} for data from {low[bad].tolist()} to "
            f"{high[bad].tolist()} at dimensions {bad}: they exclude frames."
        )


def _dims(bad: Tensor) -> list[int]:
    return bad.nonzero().flatten().tolist()


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
        given = {field.name: vars(self)[field.name] for field in fields(self)}
        for name, value in check_statistics("FeatureStatistics", given).items():
            device = torch.as_tensor(given[name]).device
            object.__setattr__(self, name, value.to(device))

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
    def is_sparse(self) -> Tensor:
        """Bool ``[D]``, True = ``q01`` and ``q99`` miss the motion of the dimension.

        An extreme lies more than 40 times as far from the middle of the quantiles as
        the quantiles do, as where a joint moves in one of a thousand samples.
        """
        middle, half = (self.q99 + self.q01) / 2, (self.q99 - self.q01) / 2
        reach = torch.maximum(self.max - middle, middle - self.min)
        return reach > _SPARSE_REACH * half

    def cover_sparse(self) -> FeatureStatistics:
        """Return statistics with ``min`` and ``max`` as quantiles of sparse dimensions.

        Dividing by the quantiles' range would turn the rare motion into numbers in the
        thousands.

        Examples:
            >>> moves_rarely = torch.zeros(1000, 1)
            >>> moves_rarely[0] = 0.5
            >>> FeatureStatistics.from_samples(moves_rarely).cover_sparse().q99
            tensor([0.5000], dtype=torch.float64)
        """
        low = torch.where(self.is_sparse, self.min, self.q01)
        high = torch.where(self.is_sparse, self.max, self.q99)
        return replace(self, q01=low, q99=high)

    @property
    def dim(self) -> int:
        """The number of dimensions ``D``."""
        return self.mean.shape[0]

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """Return the same statistics on another device."""
        moved = {name: vars(self)[name].to(device) for name in _TENSORS}
        return FeatureStatistics(**moved, count=self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers that JSON can hold without loss."""
        out: dict[str, Any] = {n: vars(self)[n].tolist() for n in _TENSORS}
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
