"""Bijective map between two layouts of one feature's dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from torchrl_vla.schema import FeatureStatistics, MetadataError, SchemaError
from torchrl_vla.transforms.conversions.rotations import convert_rotation


@dataclass(frozen=True)
class DimensionPair:
    """One dimension on both sides: ``target = source * scale + offset``.

    Args:
        source: its index on the source's side.
        target: its index on the target's side.
        scale: not zero.
        offset: in the target's unit.
    """

    source: int
    target: int
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class RotationSlot:
    """Where a rotation is, its layout, and how many rad its numbers' unit has.

    Args:
        dims: in the layout's order.
        layout: of ``ROTATION_LAYOUTS``.
        to_rad: 1 where the numbers are no angles.
    """

    dims: tuple[int, ...]
    layout: str
    to_rad: float = 1.0


class FeatureMap(nn.Module):
    """Change order, units, ranges and rotation layouts of a feature, and back.

    Args:
        pairs: every dimension of either side that is in no rotation, once.
        rotations: source's and target's slot of each rotation that changes its layout.

    Examples:
        >>> swap = FeatureMap([DimensionPair(0, 1), DimensionPair(1, 0, scale=100.0)])
        >>> swap.to_target(torch.tensor([1.0, 2.0]))
        tensor([200.,   1.])
        >>> swap.to_source(torch.tensor([200.0, 1.0]))
        tensor([1., 2.])
    """

    source_index: Tensor
    target_index: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        pairs: Sequence[DimensionPair],
        rotations: Sequence[tuple[RotationSlot, RotationSlot]] = (),
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.rotations = tuple(rotations)
        self.source_dim = len(pairs) + sum(len(s.dims) for s, _ in rotations)
        self.target_dim = len(pairs) + sum(len(t.dims) for _, t in rotations)
        columns = {
            "source_index": torch.tensor([p.source for p in pairs], dtype=torch.long),
            "target_index": torch.tensor([p.target for p in pairs], dtype=torch.long),
            "scale": torch.tensor([p.scale for p in pairs], dtype=torch.float64),
            "offset": torch.tensor([p.offset for p in pairs], dtype=torch.float64),
        }
        for name, value in columns.items():
            self.register_buffer(name, value, persistent=False)

    def to_target(self, value: Tensor) -> Tensor:
        """Map ``[..., source_dim]`` to ``[..., target_dim]``, in the same dtype."""
        out = self.pairs_to_target(value)
        for source, target in self.rotations:
            out[..., target.dims] = _turn(value, source, target)
        return out

    def pairs_to_target(self, value: Tensor) -> Tensor:
        """Do the same without the rotations that change their layout: 0 there."""
        self._check(value, self.source_dim)
        out = value.new_zeros(*value.shape[:-1], self.target_dim)
        plain = value[..., self.source_index].double() * self.scale + self.offset
        out[..., self.target_index] = plain.to(value.dtype)
        return out

    def bases_to_target(self, value: Tensor, turned: Sequence[RotationSlot]) -> Tensor:
        """Do the same with these rotations of the target alone: the others are 0."""
        out = self.pairs_to_target(value)
        for source, target in self.rotations:
            if target in turned:
                out[..., target.dims] = _turn(value, source, target)
        return out

    def to_source(self, value: Tensor) -> Tensor:
        """Map ``[..., target_dim]`` to ``[..., source_dim]``, in the same dtype."""
        self._check(value, self.target_dim)
        out = value.new_empty(*value.shape[:-1], self.source_dim)
        plain = (value[..., self.target_index].double() - self.offset) / self.scale
        out[..., self.source_index] = plain.to(value.dtype)
        for source, target in self.rotations:
            out[..., source.dims] = _turn(value, target, source)
        return out

    def convert_statistics(self, statistics: FeatureStatistics) -> FeatureStatistics:
        """Map statistics of the source's data to those of the target's, exactly.

        Raises:
            MetadataError: a rotation changes its layout, which is not affine.
        """
        if self.rotations:
            raise MetadataError(
                "FeatureMap.convert_statistics: expected an affine conversion, got "
                f"rotations {[(s.layout, t.layout) for s, t in self.rotations]}, whose "
                "statistics do not follow from those of the numbers. Compute them from "
                "converted data with FeatureStatistics.from_samples."
            )
        low, high = self.convert_range(statistics.min, statistics.max)
        q01, q99 = self.convert_range(statistics.q01, statistics.q99)
        std = torch.empty_like(statistics.std)
        std[self.target_index] = statistics.std[self.source_index] * self.scale.abs()
        mean = self.to_target(statistics.mean)
        return FeatureStatistics(mean, std, low, high, q01, q99, statistics.count)

    def convert_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Map the ends of a range ``[source_dim]``; a flipped dimension swaps them."""
        first, second = self.to_target(low), self.to_target(high)
        return torch.minimum(first, second), torch.maximum(first, second)

    def _check(self, value: Tensor, size: int) -> None:
        if not value.is_floating_point():
            raise SchemaError(
                f"FeatureMap: expected a floating dtype, got {value.dtype}. Convert it "
                "first."
            )
        if value.shape[-1] != size:
            raise SchemaError(
                f"FeatureMap: expected [..., {size}], got shape {tuple(value.shape)}. "
                "The data are not what their metadata say."
            )


def check_entry(
    key: NestedKey, value: Tensor, size: int | None, ndim: int | None = None
) -> None:
    """Refuse an entry that is not what the metadata say.

    Args:
        key: where it is.
        value: float ``[..., size]``.
        size: None = undeclared.
        ndim: number of its dimensions; None = any.

    Raises:
        SchemaError: another dtype, width or number of dimensions.
    """
    wrong_size = size is not None and value.shape[-1:] != (size,)
    wrong_ndim = ndim is not None and value.ndim != ndim
    if wrong_size or wrong_ndim or not value.is_floating_point():
        width = "" if size is None else f" of width {size}"
        dims = "" if ndim is None else f" with {ndim} dimensions"
        raise SchemaError(
            f"RobotConversion: expected floats{width}{dims} at {key!r}, got shape "
            f"{tuple(value.shape)} of {value.dtype}. The data are not what their "
            "metadata say, or the batch size of the tensordict is not theirs."
        )


def check_pad_mask(key: NestedKey, is_pad: Tensor, chunk: Tensor) -> None:
    """Refuse a mask that is not bool ``[*B, H]`` of the chunk ``[*B, H, A]``."""
    if is_pad.dtype != torch.bool or is_pad.shape != chunk.shape[:-1]:
        raise SchemaError(
            f"RobotConversion: expected bool {tuple(chunk.shape[:-1])} at {key!r}, got "
            f"{is_pad.dtype} {tuple(is_pad.shape)}. It has to line up with the chunk."
        )


def _turn(value: Tensor, source: RotationSlot, target: RotationSlot) -> Tensor:
    rotation = value[..., source.dims].double() * source.to_rad
    turned = convert_rotation(rotation, source.layout, target.layout) / target.to_rad
    return turned.to(value.dtype)
