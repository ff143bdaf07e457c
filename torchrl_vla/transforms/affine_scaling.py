"""Affine map between robot space and model space, base of the scalings."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.data.tensor_specs import ContinuousBox
from torchrl.envs import EnvBase, Transform

from torchrl_vla.schema import (
    FeatureStatistics,
    MetadataError,
    RobotDatasetMetadata,
    SchemaError,
    SpaceError,
    check_statistics,
)
from torchrl_vla.transforms.placement import acts_in_environment, chain_of

#: Below this share of its own size (or of 1) a spread is rounding, not motion.
CONSTANT = 1e-6

ScalingMode = Literal["mean_std", "min_max", "quantile"]


class AffineScaling(Transform, ABC):
    """Map robot space to model space by ``(x - loc) / scale``, and back.

    ``loc`` and ``scale`` may be numbers or ``[D]``. A dimension that the mask leaves
    out passes through as it is. Subclasses say which keys are mapped.

    Args:
        loc: subtracted, in the feature's unit.
        scale: divided by, in the feature's unit, positive.
        mask: bool ``[D]``, True = scale this dimension.

    Raises:
        ValueError: ``loc`` or ``scale`` is not finite, ``scale <= 0``, or the shapes
            disagree, in a dimension that the mask selects.
    """

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        mask: Tensor | Sequence[bool] | None,
        **keys: Sequence[NestedKey] | None,
    ) -> None:
        super().__init__(**keys)
        self._set(loc, scale, mask)

    def _set(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        mask: Tensor | Sequence[bool] | None,
    ) -> None:
        loc = torch.as_tensor(loc, dtype=torch.float64)
        scale = torch.as_tensor(scale, dtype=torch.float64)
        used = torch.ones_like(loc, dtype=torch.bool)
        if mask is not None:
            used = torch.as_tensor(mask, dtype=torch.bool)
        if not loc.shape == scale.shape == used.shape or loc.ndim > 1:
            raise ValueError(
                f"{type(self).__name__}: expected loc, scale and mask of one shape "
                f"[D], got {tuple(loc.shape)}, {tuple(scale.shape)} and "
                f"{tuple(used.shape)}."
            )
        good = loc.isfinite() & scale.isfinite() & (scale > 0)
        if not (good | ~used).all():
            raise ValueError(
                f"{type(self).__name__}: expected finite loc and positive scale, got "
                f"loc={loc.tolist()}, scale={scale.tolist()}. Repair the statistics, "
                "or leave the dimension out by the mask."
            )
        dtype = torch.get_default_dtype()
        self.register_buffer("loc", torch.where(used, loc, 0.0).to(dtype))
        self.register_buffer("scale", torch.where(used, scale, 1.0).to(dtype))
        self.register_buffer("mask", used, persistent=False)
        if not (self.scale > 0).all() or not (self.loc + self.scale).isfinite().all():
            raise ValueError(
                f"{type(self).__name__}: expected loc and scale that {dtype} can hold, "
                f"got loc={loc.tolist()}, scale={scale.tolist()}. Change the unit."
            )

    @classmethod
    def from_stats(
        cls,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
        q01: Tensor | None = None,
        q99: Tensor | None = None,
        mask: Tensor | Sequence[bool] | None = None,
        eps: float = CONSTANT,
        **keys: Any,
    ) -> Any:
        """Build from one pair of statistics ``[D]``.

        ``mean`` and ``std`` map to zero mean and unit deviation; ``low`` and ``high``,
        or ``q01`` and ``q99``, map to ``[-1, 1]``. A dimension that did not move in the
        data (``std`` 0, ``q01 == q99``) is only centred: its scale is 1, since
        dividing by next to nothing would turn noise into commands.

        Args:
            mean: with ``std``.
            std: with ``mean``; not negative.
            low: with ``high``; declared bounds, strictly below them.
            high: with ``low``.
            q01: with ``q99``, which it must not exceed.
            q99: with ``q01``.
            mask: bool ``[D]``, True = scale this dimension.
            eps: scale, in the feature's unit, up to which a dimension did not move.
            **keys: the keys of the class.

        Raises:
            ValueError: not exactly one complete pair.
            MetadataError: NaN or infinite statistics, ``low >= high``, ``q01 > q99``,
                or ``std < 0``.
        """
        pairs = {("mean", "std"): (mean, std), ("low", "high"): (low, high)}
        pairs["q01", "q99"] = (q01, q99)
        given = {
            names: pair
            for names, pair in pairs.items()
            if any(value is not None for value in pair)
        }
        if len(given) != 1 or any(v is None for p in given.values() for v in p):
            raise ValueError(
                f"{cls.__name__}.from_stats: expected exactly one complete pair of "
                f"{list(pairs)}, got {[n for names in given for n in names]}."
            )
        ((names, pair),) = given.items()
        first, second = (torch.as_tensor(v, dtype=torch.float64) for v in pair)
        used = torch.ones_like(first, dtype=torch.bool)
        if mask is not None:
            used = torch.as_tensor(mask, dtype=torch.bool)
        if not first.shape == second.shape == used.shape:
            raise ValueError(
                f"{cls.__name__}.from_stats: expected {names[0]}, {names[1]} and mask "
                f"of one shape, got {tuple(first.shape)}, {tuple(second.shape)} and "
                f"{tuple(used.shape)}."
            )
        check_statistics(
            f"{cls.__name__}.from_stats",
            dict(zip(names, (first.reshape(-1), second.reshape(-1)), strict=True)),
            mask=used.reshape(-1),
            advice="Repair the statistics, or leave the dimension out by the mask.",
        )
        if names == ("mean", "std"):
            loc, scale = first, second
        else:
            loc, scale = (first + second) / 2, (second - first) / 2
        moves = scale > (CONSTANT * loc.abs().clamp_min(1.0)).clamp_min(eps)
        return cls(loc, torch.where(moves, scale, 1.0), mask=used, **keys)

    @classmethod
    def from_metadata(
        cls,
        metadata: RobotDatasetMetadata,
        mode: ScalingMode | None = None,
        *,
        mask: Tensor | Sequence[bool] | None = None,
        **keys: Any,
    ) -> Any:
        """Build from the statistics, or else the bounds, that metadata carry.

        Args:
            metadata: has statistics of the feature, or bounds of the action.
            mode: ``"mean_std"``, ``"min_max"`` or ``"quantile"`` (1 % and 99 %). None =
                ``"mean_std"``; where there are no statistics, the declared bounds of
                the action map to ``[-1, 1]``.
            mask: bool ``[D]``, True = scale this dimension. By default everything but
                the grippers of an action.
            **keys: the keys of the class.

        Raises:
            MetadataError: the metadata has no statistics of the feature, nor bounds.
            ValueError: unknown mode.

        Warns:
            UserWarning: in mode ``"quantile"``, a dimension moves in so few samples
                that its quantiles miss the motion, and its min and max scale it; or a
                dimension moves by rounding alone and is not scaled.
        """
        stats, moving = cls._from(metadata)
        chosen = moving if mask is None else mask
        low, high = cls._bounds(metadata)
        if stats is None and mode is None and low is not None:
            return cls.from_stats(low=low, high=high, mask=chosen, **keys)
        mode = "mean_std" if mode is None else mode
        if stats is None:
            raise MetadataError(
                f"{cls.__name__}.from_metadata: expected statistics in "
                f"{metadata.dataset_id!r}, got None. Compute them with "
                "FeatureStatistics.from_samples."
            )
        size = torch.maximum(stats.min.abs(), stats.max.abs()).clamp_min(1.0)
        spread = stats.max - stats.min
        where = f"{cls.__name__}.from_metadata: of {metadata.dataset_id!r}"
        _report(
            (spread > 0) & (spread <= 2 * CONSTANT * size),
            where,
            "move by less than a millionth, as rounding does: they are centred and not "
            "scaled. Change their unit if it is motion.",
        )
        pair: dict[str, Any]
        if mode == "mean_std":
            pair = {"mean": stats.mean, "std": stats.std}
        elif mode == "quantile":
            covered = stats.cover_sparse()
            pair = {"q01": covered.q01, "q99": covered.q99}
            _report(
                stats.is_sparse,
                where,
                "move so rarely that their quantiles miss it: min and max scale them. "
                "Mode 'mean_std' takes the deviation.",
            )
        elif mode == "min_max":
            # Seen extremes, not declared bounds: equal ones are a constant dimension.
            pair = {"q01": stats.min, "q99": stats.max}
        else:
            raise ValueError(
                f"{cls.__name__}.from_metadata: expected mode 'mean_std', 'min_max' or "
                f"'quantile', got {mode!r}."
            )
        return cls.from_stats(**pair, mask=chosen, **keys)

    @staticmethod
    def _bounds(metadata: RobotDatasetMetadata) -> tuple[Tensor | None, Tensor | None]:
        """Return the feature's declared bounds."""
        return None, None

    @staticmethod
    @abstractmethod
    def _from(
        metadata: RobotDatasetMetadata,
    ) -> tuple[FeatureStatistics | None, Tensor | None]:
        """Return the feature's statistics and its default mask."""

    def set_container(self, container: Transform | EnvBase) -> None:
        """Attach to a ``Compose`` or an environment; refuse a second scaling there.

        Raises:
            SpaceError: another scaling there scales the same dimension of a key.
        """
        super().set_container(container)
        self._check_scaled_once(
            # A Compose may go to a buffer or to an environment; refuse what is wrong
            # in both. What is wrong in a buffer only is refused by the first sample.
            in_data=not acts_in_environment(self),
            in_environment=True,
        )

    def _check_scaled_once(self, *, in_data: bool, in_environment: bool) -> None:
        chain = chain_of(self)
        for other in chain:
            if other is self or not isinstance(other, AffineScaling):
                continue
            if (
                self.mask.shape == other.mask.shape
                and not (self.mask & other.mask).any()
            ):
                continue  # two parts of one vector
            shared = []
            if in_data:
                shared.append(self._data_keys() & other._data_keys())
            if in_environment:
                ours, theirs = (s._environment_keys(chain) for s in (self, other))
                shared.append(ours & theirs)
            if all(shared):
                key = min(shared[-1], key=str)
                raise SpaceError(
                    f"{type(self).__name__}: expected {key!r} to be scaled once, got "
                    f"two scalings of it: {other} and {self}. Remove one, or give "
                    "each its own keys (in_keys in data, in_keys_inv for an "
                    "environment's action) or a mask of its own dimensions."
                )

    def _data_keys(self) -> set[NestedKey]:
        """Return the keys that are normalized in data."""
        return set(map(unravel_key, self.in_keys))

    def _environment_keys(self, chain: list[Transform]) -> set[NestedKey]:
        """Return the base environment's keys of what is scaled in an environment."""
        return self._data_keys()

    def normalize(self, value: Tensor) -> Tensor:
        """Map ``[..., D]`` from robot space to model space."""
        self._check(value)
        loc, scale = self._on(value.device)
        return (value - loc) / scale

    def denormalize(self, value: Tensor) -> Tensor:
        """Map ``[..., D]`` from model space to robot space."""
        self._check(value)
        loc, scale = self._on(value.device)
        return value * scale + loc

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return location and scale where the data are.

        One space serves frames on the CPU and a policy's environment on a device.
        """
        if self.loc.device == device:
            return self.loc, self.scale
        return self.loc.to(device), self.scale.to(device)

    def _check(self, value: Tensor) -> None:
        if not value.is_floating_point():
            raise SchemaError(
                f"{type(self).__name__}: expected a floating dtype, got {value.dtype}. "
                "Convert it first."
            )
        if self.loc.ndim and value.shape[-1:] != self.loc.shape:
            raise SchemaError(
                f"{type(self).__name__}: expected [..., {len(self.loc)}], got shape "
                f"{tuple(value.shape)}. The statistics belong to another feature."
            )

    def _normalized_spec(self, spec: Composite, keys: Sequence[NestedKey]) -> Composite:
        """Return the spec with its leaves at ``keys`` in model space."""
        spec = spec.clone()
        for key in map(unravel_key, keys):
            if key in spec.keys(True, True):
                spec[key] = self._normalized_leaf(spec[key])
        return spec

    def _normalized_leaf(self, leaf: TensorSpec) -> TensorSpec:
        if not isinstance(leaf.space, ContinuousBox):
            raise SchemaError(
                f"{type(self).__name__}: expected a continuous spec, got "
                f"{type(leaf).__name__}. Only continuous values can be scaled."
            )
        if isinstance(leaf, Unbounded):
            return leaf
        low, high = leaf.space.low, leaf.space.high
        limits = torch.finfo(leaf.dtype)
        # A dimension without a bound has the dtype's extreme there; it keeps it.
        return Bounded(
            low=torch.where(low > limits.min, self.normalize(low), low),
            high=torch.where(high < limits.max, self.normalize(high), high),
            shape=leaf.shape,
            device=leaf.device,
            dtype=leaf.dtype,
        )

    def __repr__(self) -> str:
        loc, scale = self.loc.tolist(), self.scale.tolist()
        return f"{type(self).__name__}(loc={loc}, scale={scale})"


def _report(dimensions: Tensor, where: str, choice: str) -> None:
    """Warn of a choice that was made for some dimensions, if there are any."""
    if dimensions.any():
        chosen = dimensions.nonzero().flatten().tolist()
        warnings.warn(f"{where}, dimensions {chosen} {choice}", stacklevel=3)
