"""Plan of a conversion between the conventions of two metadata records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isclose

from torchrl_vla.schema import GripperConvention, RobotDatasetMetadata
from torchrl_vla.schema.compatibility import RATE_TOLERANCE
from torchrl_vla.schema.conventions import RotationConvention
from torchrl_vla.transforms.conversions.feature_map import (
    DimensionPair,
    FeatureMap,
    RotationSlot,
)
from torchrl_vla.transforms.conversions.feature_matching import (
    match_actions,
    match_states,
    rotation_slot,
)
from torchrl_vla.transforms.conversions.reference_change import ReferenceChange
from torchrl_vla.transforms.conversions.units import unit_factor


@dataclass
class ConversionPlan:
    """What takes data of one record to the conventions of another.

    Args:
        source: of the data.
        target: of the data that are wanted.

    Attributes:
        problems: one text for each difference that has no conversion; where there is
            one, the rest of the plan is incomplete.
        actions: of absolute actions; None = an action is undeclared.
        states: None = a state is undeclared.
        before: makes the source's actions absolute, where the reference changes.
        after: measures them anew, as the target wants it.
        state_of_action: for each dimension of the source's action, that of the state
            that it is measured from, and the factor between their units (0 = none).
        rate_ratio: target's rate over source's.
        rotations: of the target's action, to be turned rather than interpolated.
    """

    source: RobotDatasetMetadata
    target: RobotDatasetMetadata
    problems: list[str] = field(default_factory=list)
    rate_ratio: float = 1.0
    state_of_action: list[tuple[int, float]] = field(default_factory=list)
    rotations: list[RotationSlot] = field(default_factory=list)

    def __post_init__(self) -> None:
        source, target = self.source, self.target
        ours, theirs = source.control_frequency_hz, target.control_frequency_hz
        if ours and theirs and not isclose(ours, theirs, rel_tol=RATE_TOLERANCE):
            self.rate_ratio = theirs / ours
        robots = {source.embodiment_id, target.embodiment_id} - {None}
        if len(robots) > 1:
            self.problems.append(
                f"embodiment_id: {source.embodiment_id!r} against "
                f"{target.embodiment_id!r} (another robot)"
            )
        if (
            source.cameras
            and target.cameras
            and set(source.cameras) != set(target.cameras)
        ):
            self.problems.append(
                f"cameras: {source.cameras} against {target.cameras} (other images; "
                "rename them with TorchRL's RenameTransform if they are the same)"
            )
        self.states = match_states(source, target, self.problems.append)
        self.actions = match_actions(source, target, self.problems.append)
        self._plan_references()
        if self.rate_ratio != 1.0 and not self.problems:
            self.rotations = list(self._rotations_at_target())

    @property
    def is_affine(self) -> bool:
        """True = every statistic of the target's actions follows from the source's."""
        one_step = self.rate_ratio == 1.0 and not self.changes_reference
        return one_step and (self.actions is None or not self.actions.rotations)

    @property
    def changes_reference(self) -> bool:
        """True = actions are made absolute on the way."""
        return any(
            change.needs_state or change.needs_previous
            for change in (self.before, self.after)
        )

    def _plan_references(self) -> None:
        source, target = self.source, self.target
        resampled = self.rate_ratio != 1.0
        if resampled and None in (source.action_reference, target.action_reference):
            self.problems.append(
                "action_reference: undeclared, and a delta cannot be resampled like a "
                "target (declare it on both sides)"
            )
        if self.actions is None or self.problems:
            self.before = self.after = ReferenceChange((), ())
            return
        ours = source.action_reference or (None,) * self.actions.source_dim
        theirs = target.action_reference or (None,) * self.actions.target_dim
        turning = _turning_dims(source)
        through = {}
        for pair in self.actions.pairs:
            names = ours[pair.source], theirs[pair.target]
            moves = None not in names and names[0] != names[1]
            if moves or (resampled and "delta" in names):
                through[pair] = names
                if pair.source in turning or pair.target in _turning_dims(target):
                    self._report_turning((pair.source,), set(names))
        for first, second in self.actions.rotations:
            both = {ours[d] for d in first.dims} | {theirs[d] for d in second.dims}
            if len(both - {None}) > 1 or (resampled and "delta" in both):
                self._report_turning(first.dims, both)
        self._find_states([p for p, names in through.items() if "relative" in names])
        self._flag(through)

    def _report_turning(self, dims: tuple[int, ...], names: set[str | None]) -> None:
        self.problems.append(
            f"action_reference: {sorted(map(str, names))} of the rotation at "
            f"dimensions {dims} (the metadata do not say whether it turns in the "
            "robot's frame, step * before, or in its own, before * step: compose the "
            "rotations, e.g. with scipy's Rotation, and declare absolute ones)"
        )

    def _find_states(self, pairs: list[DimensionPair]) -> None:
        source = self.source
        size = self.actions.source_dim if self.actions else 0
        self.state_of_action = [(0, 0.0)] * size
        names, state_names = source.action_names or (), source.state_names or ()
        units, state_units = source.action_units, source.state_units
        for pair in pairs:
            name = names[pair.source] if names else None
            if name not in state_names:
                self.problems.append(
                    f"action_reference: dimension {pair.source} ({name!r}) is measured "
                    "from the state, which has no dimension of that name (declare "
                    "action_names and state_names of the data to be converted)"
                )
                continue
            where = state_names.index(name)
            factor: float | None = 1.0
            if units is not None and state_units is not None:
                factor = unit_factor(state_units[where], units[pair.source])
                if factor is None:
                    self.problems.append(
                        f"action_reference: {name!r} is in {units[pair.source]!r} in "
                        f"the action and in {state_units[where]!r} in the state (no "
                        "known factor between them)"
                    )
            self.state_of_action[pair.source] = (where, factor or 1.0)

    def _flag(
        self, through: dict[DimensionPair, tuple[str | None, str | None]]
    ) -> None:
        """Make both changes of reference, and keep offsets off what is no target."""
        assert self.actions is not None  # the caller's check
        flags = {}
        for side, size in ((0, self.actions.source_dim), (1, self.actions.target_dim)):
            for kind in ("relative", "delta"):
                chosen = [
                    (pair.source, pair.target)[side]
                    for pair, names in through.items()
                    if names[side] == kind
                ]
                flags[side, kind] = [dim in chosen for dim in range(size)]
        self.before = ReferenceChange(flags[0, "relative"], flags[0, "delta"])
        self.after = ReferenceChange(flags[1, "relative"], flags[1, "delta"])
        reference = self.source.action_reference
        if reference is not None:
            pairs = [
                DimensionPair(p.source, p.target, p.scale)
                if p not in through and reference[p.source] != "absolute"
                else p
                for p in self.actions.pairs
            ]
            self.actions = FeatureMap(pairs, self.actions.rotations)

    def moved_grippers(self) -> tuple[GripperConvention, ...]:
        """Return the source's grippers at the target's dimensions, as they are."""
        position = self._position()
        return tuple(replace(g, dim=position[g.dim]) for g in self.source.grippers)

    def moved_rotations(self) -> tuple[RotationConvention, ...]:
        """Return the source's rotations at the target's dimensions, as they are."""
        position = self._position()
        return tuple(
            replace(r, dims=tuple(position[d] for d in r.dims))
            for r in self.source.rotations
        )

    def _position(self) -> dict[int, int]:
        if self.actions is None:
            return {dim: dim for dim in range(self.source.action_dim or 0)}
        return {pair.source: pair.target for pair in self.actions.pairs}

    def _rotations_at_target(self) -> Iterator[RotationSlot]:
        units = self.target.action_units
        if units is None and self.source.action_units is not None:
            position = {target: source for source, target in self._position().items()}
            size = self.actions.target_dim if self.actions else 0
            units = tuple(
                self.source.action_units[position[dim]] if dim in position else ""
                for dim in range(size)
            )
        for rotation in self.target.rotations or self.moved_rotations():
            yield rotation_slot(rotation, units, self.problems.append)


def _turning_dims(metadata: RobotDatasetMetadata) -> set[int]:
    return {d for rotation in metadata.rotations for d in rotation.dims}
