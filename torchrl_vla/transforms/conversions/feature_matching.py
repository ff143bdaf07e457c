"""Matching of the dimensions that two metadata records declare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchrl_vla.schema import GripperConvention, RobotDatasetMetadata
from torchrl_vla.schema.conventions import RotationConvention
from torchrl_vla.transforms.conversions.feature_map import (
    DimensionPair,
    FeatureMap,
    RotationSlot,
)
from torchrl_vla.transforms.conversions.rotations import ANGLE_LAYOUTS
from torchrl_vla.transforms.conversions.units import unit_factor

Report = Callable[[str], None]
Names = Sequence[str] | None


def match_states(
    source: RobotDatasetMetadata, target: RobotDatasetMetadata, report: Report
) -> FeatureMap | None:
    """Return the map between two records' states; None = a state is undeclared.

    Args:
        source: of the data.
        target: of the data that are wanted.
        report: called with one text for each difference without a conversion.
    """
    if source.state_dim is None or target.state_dim is None:
        return None
    indices = _match_names(
        "state",
        (source.state_names, range(source.state_dim)),
        (target.state_names, range(target.state_dim)),
        report,
    )
    scales = _factors("state", source.state_units, target.state_units, indices, report)
    return FeatureMap(
        [DimensionPair(s, t, f) for (s, t), f in zip(indices, scales, strict=True)]
    )


def match_actions(
    source: RobotDatasetMetadata, target: RobotDatasetMetadata, report: Report
) -> FeatureMap | None:
    """Return the map between two records' actions; None = an action is undeclared.

    Dimensions are matched by name where both sides have names, else in order;
    rotations and grippers, which both sides have to declare to be converted, in the
    order of their declaration.
    """
    if source.action_dim is None or target.action_dim is None:
        return None
    turned = _match_rotations(source.rotations, target.rotations, report)
    ours = [
        d for d in range(source.action_dim) if not _within(d, [s for s, _ in turned])
    ]
    theirs = [
        d for d in range(target.action_dim) if not _within(d, [t for _, t in turned])
    ]
    indices = _match_names(
        "action", (source.action_names, ours), (target.action_names, theirs), report
    )
    if len(turned) > 1 and indices != sorted(indices, key=lambda pair: pair[1]):
        report(
            "rotations: several rotations, and other dimensions in another order, so "
            "that it is unknown which rotation is which (declare both in one order)"
        )
    same = [(s, t) for s, t in turned if s.layout == t.layout]
    indices += [pair for s, t in same for pair in zip(s.dims, t.dims, strict=True)]
    _check_spaces(
        source, target, [*indices, *((s.dims[0], t.dims[0]) for s, t in turned)], report
    )
    pairs = _scaled(source, target, indices, report)
    slots = [
        (
            rotation_slot(s, source.action_units, report),
            rotation_slot(t, target.action_units, report),
        )
        for s, t in turned
        if s.layout != t.layout
    ]
    return FeatureMap(pairs, slots)


def rotation_slot(
    rotation: RotationConvention, units: Names, report: Report
) -> RotationSlot:
    """Return a rotation with its unit in rad; angles of unknown unit are reported."""
    to_rad: float | None = 1.0
    if rotation.layout in ANGLE_LAYOUTS:
        named = {None if units is None else units[d] for d in rotation.dims}
        unit = named.pop()
        to_rad = None if named or unit is None else unit_factor(unit, "rad")
        if to_rad is None:
            report(
                f"action_units: expected one unit of angles for the {rotation.layout} "
                f"rotation at {rotation.dims}, got {units} (declare 'rad' or 'deg')"
            )
    return RotationSlot(rotation.dims, rotation.layout, to_rad or 1.0)


def _within(dim: int, rotations: list[RotationConvention]) -> bool:
    return any(dim in rotation.dims for rotation in rotations)


def _match_rotations(
    ours: Sequence[RotationConvention],
    theirs: Sequence[RotationConvention],
    report: Report,
) -> list[tuple[RotationConvention, RotationConvention]]:
    if not ours or not theirs:
        return []
    if len(ours) != len(theirs):
        report(f"rotations: {len(ours)} against {len(theirs)} (other rotations)")
        return []
    return list(zip(ours, theirs, strict=True))


def _match_names(
    feature: str,
    ours: tuple[Names, Sequence[int]],
    theirs: tuple[Names, Sequence[int]],
    report: Report,
) -> list[tuple[int, int]]:
    (our_names, our_dims), (their_names, their_dims) = ours, theirs
    if our_names is not None and their_names is not None:
        position = {their_names[d]: d for d in their_dims}
        named = {our_names[d]: d for d in our_dims}
        if position.keys() != named.keys():
            alone = [sorted(named.keys() - position), sorted(position.keys() - named)]
            report(
                f"{feature}_names: {alone[0]} on one side only, {alone[1]} on the "
                "other only (a dimension cannot be made up or left out)"
            )
            return []
        return [(d, position[name]) for name, d in named.items()]
    if len(our_dims) != len(their_dims):
        report(
            f"{feature}_dim: {len(our_dims)} against {len(their_dims)} dimensions "
            "beside converted rotations (a dimension cannot be made up or left out)"
        )
        return []
    return list(zip(our_dims, their_dims, strict=True))


def _factors(
    feature: str,
    ours: Names,
    theirs: Names,
    indices: Sequence[tuple[int, int]],
    report: Report,
) -> list[float]:
    factors = []
    for s, t in indices:
        factor: float | None = 1.0
        if ours is not None and theirs is not None:
            factor = unit_factor(ours[s], theirs[t])
            if factor is None:
                report(
                    f"{feature}_units: {ours[s]!r} at dimension {s} against "
                    f"{theirs[t]!r} at {t} (no known factor between them)"
                )
        factors.append(factor or 1.0)
    return factors


def _check_spaces(
    source: RobotDatasetMetadata,
    target: RobotDatasetMetadata,
    indices: Sequence[tuple[int, int]],
    report: Report,
) -> None:
    ours, theirs = source.action_space, target.action_space
    if ours is None or theirs is None:
        return
    if apart := [(ours[s], theirs[t]) for s, t in indices if ours[s] != theirs[t]]:
        report(
            f"action_space: {apart[0][0]!r} against {apart[0][1]!r} in {len(apart)} "
            "dimensions (takes the robot's kinematics)"
        )


def _scaled(
    source: RobotDatasetMetadata,
    target: RobotDatasetMetadata,
    indices: Sequence[tuple[int, int]],
    report: Report,
) -> list[DimensionPair]:
    ours = {g.dim: g for g in source.grippers}
    theirs = {g.dim: g for g in target.grippers}
    ours_unitless, theirs_unitless = _unitless(source), _unitless(target)
    pairs, rest = [], []
    for s, t in indices:
        if s in ours_unitless or t in theirs_unitless:
            pairs.append(DimensionPair(s, t))
        elif not (ours and theirs) or (s not in ours and t not in theirs):
            rest.append((s, t))
        elif s in ours and t in theirs:
            pairs.append(_gripper_pair(ours[s], theirs[t]))
        else:
            report(f"grippers: dimension {s} against {t} is a gripper on one side only")
    factors = _factors("action", source.action_units, target.action_units, rest, report)
    pairs += [DimensionPair(s, t, f) for (s, t), f in zip(rest, factors, strict=True)]
    return pairs


def _unitless(metadata: RobotDatasetMetadata) -> set[int]:
    """Return the dimensions of quaternions and matrices, which no unit can scale."""
    return {
        dim
        for rotation in metadata.rotations
        if rotation.layout not in ANGLE_LAYOUTS
        for dim in rotation.dims
    }


def _gripper_pair(ours: GripperConvention, theirs: GripperConvention) -> DimensionPair:
    scale = (theirs.open - theirs.closed) / (ours.open - ours.closed)
    return DimensionPair(
        ours.dim, theirs.dim, scale, theirs.closed - ours.closed * scale
    )
