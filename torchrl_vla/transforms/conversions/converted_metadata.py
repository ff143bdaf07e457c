"""Metadata record of converted data."""

from __future__ import annotations

from dataclasses import replace

import torch

from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.transforms.conversions.conversion_plan import ConversionPlan
from torchrl_vla.transforms.conversions.feature_map import FeatureMap

#: Declarations that say what numbers mean.
_CONVERTED = (
    "action_names",
    "action_units",
    "action_reference",
    "rotations",
    "grippers",
    "state_names",
    "state_units",
    "cameras",
    "control_frequency_hz",
)


def converted_metadata(plan: ConversionPlan) -> RobotDatasetMetadata:
    """Return the record of the source's data after a conversion.

    What the target declares holds; what it leaves open is the source's, in the new
    order. Bounds and statistics of actions are converted where that is exact (orders,
    units and ranges); otherwise they are None, to be computed from converted data with
    ``FeatureStatistics.from_samples``.
    """
    source, target, actions, states = (
        plan.source,
        plan.target,
        plan.actions,
        plan.states,
    )
    low, high, statistics = None, None, None
    if actions is not None and not actions.rotations and not plan.changes_reference:
        if source.action_low is not None and source.action_high is not None:
            first, second = (
                torch.tensor(end, dtype=torch.float64)
                for end in (source.action_low, source.action_high)
            )
            low, high = (
                tuple(end.tolist()) for end in actions.convert_range(first, second)
            )
        if source.action_statistics is not None and plan.is_affine:
            statistics = actions.convert_statistics(source.action_statistics)
    state_statistics = source.state_statistics
    if states is not None and state_statistics is not None:
        state_statistics = states.convert_statistics(state_statistics)
    return replace(
        source,
        embodiment_id=source.embodiment_id or target.embodiment_id,
        action_dim=actions.target_dim if actions else source.action_dim,
        action_names=target.action_names or _moved(source.action_names, actions),
        action_units=target.action_units or _moved(source.action_units, actions),
        action_reference=(
            target.action_reference or _moved(source.action_reference, actions)
        ),
        action_space=target.action_space or _moved(source.action_space, actions),
        rotations=plan.target_rotations(),
        grippers=target.grippers or plan.moved_grippers(),
        action_low=low if actions else source.action_low,
        action_high=high if actions else source.action_high,
        state_names=target.state_names or _moved(source.state_names, states),
        state_units=target.state_units or _moved(source.state_units, states),
        cameras=target.cameras or source.cameras,
        control_frequency_hz=(
            target.control_frequency_hz or source.control_frequency_hz
        ),
        action_statistics=statistics if actions else source.action_statistics,
        state_statistics=state_statistics,
    )


def changed_fields(
    source: RobotDatasetMetadata, converted: RobotDatasetMetadata
) -> list[str]:
    """Return one line per declaration that a conversion changes."""
    pairs = [(name, vars(source)[name], vars(converted)[name]) for name in _CONVERTED]
    return [
        f"{name}: {ours} becomes {theirs}"
        for name, ours, theirs in pairs
        if ours and theirs and ours != theirs
    ]


def _moved(
    values: tuple[str, ...] | None, feature: FeatureMap | None
) -> tuple[str, ...] | None:
    """Return the source's texts in the target's order; None = they do not fit."""
    if values is None or feature is None or feature.rotations:
        return None if feature is not None and feature.rotations else values
    moved = [""] * feature.target_dim
    for pair in feature.pairs:
        moved[pair.target] = values[pair.source]
    return tuple(moved)
