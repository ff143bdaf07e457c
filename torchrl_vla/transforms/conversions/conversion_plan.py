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
    Names,
    match_actions,
    match_states,
    rotation_slot,
)
from torchrl_vla.transforms.conversions.reference_change import ReferenceChange
from torchrl_vla.transforms.conversions.turned_rotation import TurnedRotation
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
        rotations = list(self._rotation_pairs())
        turning = {d for first, _ in rotations for d in first.dims}
        through = {}
        for pair in self.actions.pairs:
            names = ours[pair.source], theirs[pair.target]
            moves = None not in names and names[0] != names[1]
            if pair.source not in turning and (
                moves or (resampled and "delta" in names)
            ):
                through[pair] = names
        measured = [p.source for p, names in through.items() if "relative" in names]
        turned = []
        for first, second in rotations:
            kinds = {ours[d] for d in first.dims}, {theirs[d] for d in second.dims}
            moved = self._plan_rotation(first, second, *kinds)
            turned += moved
            if any(rotation.kind == "relative" for pair in moved for rotation in pair):
                measured += first.dims
        self._find_states(measured)
        self._flag(through, turned)

    def _rotation_pairs(
        self,
    ) -> Iterator[tuple[RotationConvention, RotationConvention]]:
        """Yield every rotation on both sides; one that one side declares is of both."""
        ours, theirs = self.source.rotations, self.target.rotations
        if ours and not theirs:
            theirs = self.moved_rotations()
        if theirs and not ours:
            position = {target: source for source, target in self._position().items()}
            ours = tuple(
                replace(r, dims=tuple(position[d] for d in r.dims)) for r in theirs
            )
        yield from zip(ours, theirs, strict=True)

    def _plan_rotation(
        self,
        first: RotationConvention,
        second: RotationConvention,
        ours: set[str | None],
        theirs: set[str | None],
    ) -> list[tuple[TurnedRotation, TurnedRotation]]:
        """Return how a rotation is made absolute and measured anew, if it has to be."""
        if None in ours | theirs or ours == theirs == {"absolute"}:
            return []
        where = f"of the rotation at dimensions {first.dims}"
        if len(ours) > 1 or len(theirs) > 1:
            if ours != theirs or self.rate_ratio != 1.0:
                self.problems.append(
                    f"action_reference: {sorted(map(str, ours | theirs))} {where} (its "
                    "numbers turn together: declare one reference for all of them)"
                )
            return []
        (before,), (after,) = ours, theirs
        frames = first.frame or second.frame, second.frame or first.frame
        is_resampled = self.rate_ratio != 1.0 and before == "delta"
        if before == after and frames[0] == frames[1] and not is_resampled:
            return []
        if frames[0] is None:
            self.problems.append(
                f"action_reference: {sorted({str(before), str(after)})} {where} (no "
                "side says about which axes it turns: declare RotationConvention(..., "
                "frame='world') where target = step * before, in the robot's frame, or "
                "frame='body' where target = before * step, in the tool's own)"
            )
            return []
        units = self._units()
        turned = (
            TurnedRotation(
                rotation_slot(rotation, unit, self.problems.append), str(kind), frame
            )
            for rotation, unit, kind, frame in (
                (first, units[0], before, str(frames[0])),
                (second, units[1], after, str(frames[1])),
            )
        )
        return [(next(turned), next(turned))]

    def _find_states(self, dims: list[int]) -> None:
        source = self.source
        size = self.actions.source_dim if self.actions else 0
        self.state_of_action = [(0, 0.0)] * size
        names, state_names = source.action_names or (), source.state_names or ()
        units, state_units = source.action_units, source.state_units
        for dim in dims:
            name = names[dim] if names else None
            if name not in state_names:
                self.problems.append(
                    f"action_reference: dimension {dim} ({name!r}) is measured "
                    "from the state, which has no dimension of that name (declare "
                    "action_names and state_names of the data to be converted)"
                )
                continue
            where = state_names.index(name)
            factor: float | None = 1.0
            if units is not None and state_units is not None:
                factor = unit_factor(state_units[where], units[dim])
                if factor is None:
                    self.problems.append(
                        f"action_reference: {name!r} is in {units[dim]!r} in "
                        f"the action and in {state_units[where]!r} in the state (no "
                        "known factor between them)"
                    )
            self.state_of_action[dim] = (where, factor or 1.0)

    def _flag(
        self,
        through: dict[DimensionPair, tuple[str | None, str | None]],
        turned: list[tuple[TurnedRotation, TurnedRotation]],
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
        self.before, self.after = (
            ReferenceChange(
                flags[side, "relative"],
                flags[side, "delta"],
                [pair[side] for pair in turned],
            )
            for side in (0, 1)
        )
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

    def target_rotations(self) -> tuple[RotationConvention, ...]:
        """Return the target's rotations, in the source's frames where it has none."""
        return tuple(
            replace(second, frame=second.frame or first.frame)
            for first, second in self._rotation_pairs()
        )

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

    def _units(self) -> tuple[Names, Names]:
        """Return the units of both sides; undeclared ones are those of the other."""
        ours, theirs = self.source.action_units, self.target.action_units
        position = self._position()
        if theirs is None and ours is not None:
            back = {target: source for source, target in position.items()}
            size = self.actions.target_dim if self.actions else 0
            theirs = tuple(ours[back[d]] if d in back else "" for d in range(size))
        elif ours is None and theirs is not None:
            size = self.actions.source_dim if self.actions else 0
            ours = tuple(
                theirs[position[d]] if d in position else "" for d in range(size)
            )
        return ours, theirs

    def _rotations_at_target(self) -> Iterator[RotationSlot]:
        units = self._units()[1]
        for rotation in self.target.rotations or self.moved_rotations():
            yield rotation_slot(rotation, units, self.problems.append)
