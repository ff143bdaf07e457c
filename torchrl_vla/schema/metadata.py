"""Metadata of a robot dataset, environment or policy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.envs import Transform

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import MetadataError
from torchrl_vla.schema.compatibility import (
    conversions,
    differences,
    refuse_differences,
)
from torchrl_vla.schema.conventions import (
    ORIENTATIONS,
    REFERENCES,
    SPACES,
    GripperConvention,
    RotationConvention,
    broadcast_names,
)
from torchrl_vla.schema.feature_statistics import FeatureStatistics
from torchrl_vla.schema.metadata_spellings import takes_torchrls_arguments

_NAMES = ("names", "units", "reference", "space")
_NAMES_PER_ACTION_DIM = tuple(f"action_{name}" for name in _NAMES)
_NAMES_PER_STATE_DIM = ("state_names", "state_units")


@takes_torchrls_arguments
@dataclass(frozen=True)
class RobotDatasetMetadata:
    """Describe what the numbers of a robot's data mean, and refuse mismatches.

    A policy that outputs degrees drives a robot that expects radians without any
    error in the tensors. This record carries what tensors cannot say; where two
    records meet, :meth:`check_compatible` compares them. ``None`` means undeclared.

    Args:
        dataset_id: name of the dataset or environment, e.g. ``"bridge"``.
        embodiment_id: name of the robot, e.g. ``"widowx"``.
        action_dim: ``A``; may be left out when another action field has a length.
        state_dim: ``S``; likewise.
        action_names: one per dimension, e.g. ``("x", "y", "z", "gripper")``.
        action_units: one per dimension or one text for all, e.g. ``"rad"``.
        action_reference: ``"absolute"``, ``"delta"`` (from the previous command) or
            ``"relative"`` (from the state seen when the chunk was made); per
            dimension or for all.
        action_space: ``"joint"``, ``"end_effector"``, ``"gripper"`` or ``"base"``;
            per dimension or for all.
        rotations: which dimensions are rotations, and their layout.
        grippers: which dimensions are grippers, their range, which value is closed.
        action_low: smallest legal action per dimension.
        action_high: largest legal action per dimension.
        state_names: one per dimension.
        state_units: one per dimension or one text for all.
        control_frequency_hz: actions per second.
        cameras: camera names, in the policy's order.
        action_statistics: statistics of ``action``.
        state_statistics: statistics of ``observation.state``.
        image_sizes: ``(C, h, w)`` of each camera, in the order of ``cameras``; one
            size of an image without a name.
        image_orientation: ``"upright"`` as the camera sees it, ``"mirrored"`` left to
            right, or ``"upside_down"``; of all cameras.

    Raises:
        MetadataError: lists every contradiction (lengths that disagree, low >= high,
            non-finite numbers, unknown conventions).

    Examples:
        >>> metadata = RobotDatasetMetadata(
        ...     "tabletop",
        ...     action_names=("dx", "dy"),
        ...     action_units="m",
        ...     action_reference="delta",
        ...     action_low=(-1.0, -1.0),
        ...     action_high=(1.0, 1.0),
        ...     control_frequency_hz=10.0,
        ... )
        >>> metadata.action_dim, metadata.make_action_spec().shape
        (2, torch.Size([2]))
        >>> RobotDatasetMetadata.from_json(metadata.to_json()) == metadata
        True
    """

    dataset_id: str
    embodiment_id: str | None = None
    action_dim: int | None = None
    state_dim: int | None = None
    action_names: tuple[str, ...] | None = None
    action_units: tuple[str, ...] | None = None
    action_reference: tuple[str, ...] | None = None
    action_space: tuple[str, ...] | None = None
    rotations: tuple[RotationConvention, ...] = ()
    grippers: tuple[GripperConvention, ...] = ()
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    state_names: tuple[str, ...] | None = None
    state_units: tuple[str, ...] | None = None
    control_frequency_hz: float | None = None
    cameras: tuple[str, ...] = ()
    action_statistics: FeatureStatistics | None = None
    state_statistics: FeatureStatistics | None = None
    image_sizes: tuple[tuple[int, int, int], ...] | None = None
    image_orientation: str | None = None

    def __post_init__(self) -> None:
        self._fill_in("action_dim", _NAMES_PER_ACTION_DIM, self.action_statistics)
        self._fill_in("state_dim", _NAMES_PER_STATE_DIM, self.state_statistics)
        for name in ("rotations", "grippers", "cameras"):
            if isinstance(vars(self)[name], str):
                raise MetadataError(
                    f"RobotDatasetMetadata: expected a tuple at argument {name!r}, got "
                    f"the text {vars(self)[name]!r}."
                )
            object.__setattr__(self, name, tuple(vars(self)[name]))
        if self.image_sizes is not None:
            sizes = tuple(tuple(size) for size in self.image_sizes)
            object.__setattr__(self, "image_sizes", sizes)
        for name in ("action_low", "action_high"):
            value = vars(self)[name]
            if value is not None:
                numbers = torch.as_tensor(value, dtype=torch.float64).flatten()
                object.__setattr__(self, name, tuple(numbers.tolist()))
        problems = list(self._problems())
        if problems:
            raise MetadataError(
                f"RobotDatasetMetadata {self.dataset_id!r}: " + " ".join(problems)
            )

    def _fill_in(
        self, dim: str, per_dim: Sequence[str], stats: FeatureStatistics | None
    ) -> None:
        """Derive the dimension where it was left out, and broadcast single texts."""
        size = vars(self)[dim]
        if size is None:
            lengths = [
                len(value)
                for value in (vars(self)[name] for name in per_dim)
                if value is not None and not isinstance(value, str)
            ]
            lengths += [stats.dim] if stats is not None else []
            size = lengths[0] if lengths else None
            object.__setattr__(self, dim, size)
        for name in per_dim:
            if isinstance(vars(self)[name], str) and size is None:
                raise MetadataError(
                    f"RobotDatasetMetadata: expected {dim!r} beside the single text at "
                    f"argument {name!r}, got None. Give {dim}=..."
                )
            object.__setattr__(self, name, broadcast_names(vars(self)[name], size))

    def _problems(self) -> Iterator[str]:
        if not isinstance(self.dataset_id, str) or not self.dataset_id.strip():
            yield f"expected a name at 'dataset_id', got {self.dataset_id!r}."
        for dim in ("action_dim", "state_dim"):
            size = vars(self)[dim]
            if size is not None and (not isinstance(size, int) or size < 1):
                yield f"expected a positive int at {dim!r}, got {size!r}."
        yield from self._length_problems("action", _NAMES_PER_ACTION_DIM)
        yield from self._length_problems("state", _NAMES_PER_STATE_DIM)
        yield from self._bound_problems()
        yield from self._convention_problems()
        rate_hz = self.control_frequency_hz
        if rate_hz is not None and not 0 < rate_hz < float("inf"):
            yield f"expected control_frequency_hz > 0, got {rate_hz}."
        if len(set(self.cameras)) != len(self.cameras):
            yield f"expected different cameras, got {self.cameras}."
        sizes = self.image_sizes or ()
        if any(len(size) != 3 or min(size) < 1 for size in sizes):
            yield f"expected image_sizes of (C, h, w) >= 1 each, got {sizes}."
        if sizes and self.cameras and len(sizes) != len(self.cameras):
            yield f"expected a size for each of {self.cameras}, got {sizes}."

    def _length_problems(self, feature: str, per_dim: Sequence[str]) -> Iterator[str]:
        size = vars(self)[f"{feature}_dim"]
        bounds = ("action_low", "action_high") if feature == "action" else ()
        lengths = {
            name: len(vars(self)[name])
            for name in (*per_dim, *bounds)
            if vars(self)[name] is not None
        }
        stats = vars(self)[f"{feature}_statistics"]
        if stats is not None:
            lengths[f"{feature}_statistics"] = stats.dim
        wrong = {name: length for name, length in lengths.items() if length != size}
        if wrong:
            yield f"expected length {feature}_dim={size}, got {wrong}."
        names = vars(self)[f"{feature}_names"]
        if names is not None and len(set(names)) != len(names):
            yield f"expected different names at '{feature}_names', got {names}."

    def _bound_problems(self) -> Iterator[str]:
        low, high = self.action_low, self.action_high
        if (low is None) != (high is None):
            yield "expected both of 'action_low' and 'action_high' or none."
            return
        if low is None or high is None:
            return
        if not all(abs(value) < float("inf") for value in (*low, *high)):
            yield f"expected finite action bounds, got low={low}, high={high}."
        bad = [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if not a < b]
        if bad:
            yield (
                f"expected action_low < action_high, got low={low}, high={high} "
                f"(dimensions {bad})."
            )

    def _convention_problems(self) -> Iterator[str]:
        for name, known in (("action_reference", REFERENCES), ("action_space", SPACES)):
            unknown = sorted(set(vars(self)[name] or ()) - set(known))
            if unknown:
                yield f"expected {name} of {known}, got {unknown}."
        if self.image_orientation not in (None, *ORIENTATIONS):
            yield (
                f"expected image_orientation of {ORIENTATIONS}, got "
                f"{self.image_orientation!r}."
            )
        used = [d for rotation in self.rotations for d in rotation.dims]
        used += [gripper.dim for gripper in self.grippers]
        if len(set(used)) != len(used):
            yield f"expected each dimension in one rotation or gripper, got {used}."
        outside = [d for d in used if self.action_dim is None or d >= self.action_dim]
        if outside:
            yield (
                f"expected rotation and gripper dimensions below action_dim="
                f"{self.action_dim}, got {outside}."
            )

    @property
    def gripper_dims(self) -> tuple[int, ...]:
        """The dimensions of the action that are grippers."""
        return tuple(gripper.dim for gripper in self.grippers)

    def make_action_spec(
        self,
        batch_size: Sequence[int] = (),
        device: torch.device | str | None = None,
    ) -> TensorSpec:
        """Make the float32 spec of one action, ``[*batch_size, A]``.

        Raises:
            MetadataError: ``action_dim`` is undeclared.
        """
        shape = self._shape("action", batch_size)
        if self.action_low is None:
            return Unbounded(shape=shape, device=device, dtype=torch.float32)
        return Bounded(
            low=torch.tensor(self.action_low).expand(shape).clone(),
            high=torch.tensor(self.action_high).expand(shape).clone(),
            shape=shape,
            device=device,
            dtype=torch.float32,
        )

    def make_state_spec(
        self,
        batch_size: Sequence[int] = (),
        device: torch.device | str | None = None,
    ) -> TensorSpec:
        """Make the float32 spec of the state, ``[*batch_size, S]``."""
        shape = self._shape("state", batch_size)
        return Unbounded(shape=shape, device=device, dtype=torch.float32)

    def _shape(self, feature: str, batch_size: Sequence[int]) -> torch.Size:
        size = vars(self)[f"{feature}_dim"]
        if size is None:
            raise MetadataError(
                f"RobotDatasetMetadata {self.dataset_id!r}: expected '{feature}_dim' "
                "to make a spec, got None. Declare it."
            )
        return torch.Size((*batch_size, size))

    def check_compatible(
        self,
        other: RobotDatasetMetadata,
        *,
        sides: tuple[str, str] = ("this record", "the other"),
    ) -> None:
        """Refuse another record whose data would be wrong for this one.

        Names and statistics of datasets may differ; names, order, units and
        conventions of what they contain may not. A field that either side leaves
        undeclared (``None``) cannot be compared and is passed over.

        Args:
            other: the record to compare with.

        Keyword Args:
            sides: what this record and the other describe, for the error message.

        Raises:
            IncompatibleMetadataError: lists every difference, with both values.
        """
        found = differences(self, other)
        refuse_differences("RobotDatasetMetadata", self, other, found, sides)

    def conversion_to(self, other: RobotDatasetMetadata) -> Transform:
        """Return the transform from data of this record to the other's conventions.

        On a dataset of this record it converts what is sampled. In an environment of
        this record it shows the policy states in the other's conventions and converts
        its actions back: see :class:`~torchrl_vla.transforms.RobotConversion`, whose
        attribute ``metadata`` is the record of the converted data.

        Args:
            other: of the data that are wanted, such as the policy's.

        Raises:
            IncompatibleMetadataError: lists the differences without a conversion.

        Examples:
            >>> ours = RobotDatasetMetadata("a", action_dim=2, action_units="deg")
            >>> theirs = RobotDatasetMetadata("b", action_dim=2, action_units="rad")
            >>> ours.conversion_to(theirs).metadata.action_units
            ('rad', 'rad')
        """
        differences(self, other)  # refuses what is no record
        return conversions().RobotConversion(self, other)

    def without_images(self) -> RobotDatasetMetadata:
        """Return the same record with nothing said about images."""
        return replace(self, cameras=(), image_sizes=None, image_orientation=None)

    def to(self, device: torch.device | str) -> RobotDatasetMetadata:
        """Return the same record with its statistics on another device."""
        stats = {
            name: value.to(device)
            for name in ("action_statistics", "state_statistics")
            if (value := vars(self)[name]) is not None
        }
        return replace(self, **stats)

    @staticmethod
    def stack(records: Sequence[RobotDatasetMetadata]) -> TensorDict:
        """Stack the statistics of several records, to normalize mixed batches.

        Returns:
            TensorDict ``[N]`` with ``("action", "mean")`` ``[N, A]``, ... for each
            feature for which every record has statistics. ``torch.stack`` calls this.

        Raises:
            MetadataError: the records' dimensions differ.
        """
        out = TensorDict({}, [len(records)])
        for feature in ("action", "state"):
            dims = [vars(record)[f"{feature}_dim"] for record in records]
            if len(set(dims)) > 1:
                raise MetadataError(
                    f"RobotDatasetMetadata.stack: expected one {feature}_dim, got "
                    f"{dims} for {[record.dataset_id for record in records]}. Pad the "
                    "data of the smaller robots first."
                )
            stats = [vars(record)[f"{feature}_statistics"] for record in records]
            if any(value is None for value in stats):
                continue
            for name in ("mean", "std", "min", "max", "q01", "q99"):
                rows = torch.stack([vars(value)[name] for value in stats])
                out.set((feature, name), rows)
            out.set((feature, "count"), torch.tensor([value.count for value in stats]))
        return out

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.stack and not (kwargs or len(args) > 1):
            return cls.stack(args[0])
        return NotImplemented

    def to_json(self) -> str:
        """Write every field as JSON; floats keep all their bits."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = vars(self)[field.name]
            if isinstance(value, FeatureStatistics):
                value = value.to_dict()
            elif field.name in ("rotations", "grippers"):
                value = [asdict(item) for item in value]
            out[field.name] = value
        return json.dumps(out, indent=2)

    @classmethod
    def from_json(cls, source: str | Path) -> RobotDatasetMetadata:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        Raises:
            FileNotFoundError: there is no such file.
            MetadataError: it is no JSON; a field is unknown, missing, of another type
                or contradicts another.
        """
        caller = "RobotDatasetMetadata.from_json"
        return read_json(caller, source, cls, error=MetadataError)
