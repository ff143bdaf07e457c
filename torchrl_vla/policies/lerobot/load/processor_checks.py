"""Checks of a LeRobot policy's processors: that they are its own, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import (
    Config,
    Processor,
    Step,
    optional_field,
)
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.registry import KINDS
from torchrl_vla.schema import SchemaError, check_statistics

_STATE = "observation.state"
#: The two statistics that each of LeRobot's normalizations uses.
_PAIRS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
_ADVICE = (
    "LeRobot would go on with wrong numbers in silence. Give other statistics with "
    "from_pretrained(..., statistics={<feature>: {'mean': ..., 'std': ...}}), or a "
    "dataset's with fit_lerobot_policy(folder, dataset); or make the processors with "
    "LeRobot's make_pre_post_processors(policy.config, dataset_stats=...)."
)


def check_processors(name: str, config: Config, pipeline: LeRobotPipeline) -> None:
    """Refuse processors whose numbers cannot be true, or that are another policy's.

    LeRobot's normalizer leaves a feature without statistics as it is, broadcasts one
    number over all dimensions, and believes the rest.

    Args:
        name: of the policy's class, for the error.
        config: of the policy.
        pipeline: its processors.

    Raises:
        SchemaError: they are another policy's, lack statistics or contradict each
            other.
        MetadataError: statistics cannot be true.
    """
    before, after = pipeline.preprocessor, pipeline.postprocessor
    problems = [*_feature_problems(config, before, after)]
    problems += _missing_statistics(before, after)
    if not problems:
        _check_numbers(config, before, "preprocessor")
        _check_numbers(config, after, "postprocessor")
        problems += _pair_problems(before, after)
        problems += _relative_problems(config, before, after)
    if problems:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected the processors that {name} was trained "
            f"with, got: {'; '.join(problems)}. Load a whole checkpoint with "
            f"from_pretrained(folder). {_ADVICE}"
        )


def state_size(config: Config, pipeline: LeRobotPipeline) -> int:
    """Return how many numbers of the robot's state a policy reads.

    A model that pads may have been fine-tuned on a robot with fewer than its
    configuration still declares; LeRobot normalizes these and pads them.
    """
    size = config.input_features[_STATE].shape[0]
    for step in normalizers(pipeline.preprocessor):
        for values in _used(step).get(_STATE, {}).values():
            if _may_be_padded(config, _STATE):
                size = min(size, len(values))
    return size


def normalizers(pipeline: Processor) -> Iterator[Step]:
    """Yield a pipeline's steps that normalize or denormalize."""
    for step in pipeline.steps:
        if optional_field(step, "norm_map") is not None:
            yield step


def find_step(pipeline: Processor, name: str) -> Step | None:
    """Return the step of a name in LeRobot's registry; None = the pipeline has none."""
    for step in pipeline.steps:
        if optional_field(step, "_registry_name") == name:
            return step
    return None


def _modes(step: Step) -> dict[str, tuple[Any, str]]:
    """Return feature and normalization of what a step changes, by name."""
    wanted = optional_field(step, "normalize_observation_keys")
    modes = {}
    for name, feature in step.features.items():
        mode = step.norm_map.get(feature.type)
        chosen = wanted is None or name in wanted or feature.type.value == "ACTION"
        if chosen and mode is not None and mode.value != "IDENTITY":
            modes[name] = (feature, mode.value)
    return modes


def _used(step: Step) -> dict[str, dict[str, Tensor]]:
    """Return the pairs of statistics that a step normalizes with, as far as there."""
    used = {}
    for name, (_, mode) in _modes(step).items():
        known = step._tensor_stats.get(name, {})
        used[name] = {key: known[key] for key in _PAIRS[mode] if key in known}
    return used


def _is_stand_in(name: str) -> bool:
    return ".empty_camera_" in name  # LeRobot fills it itself


def _expected(config: Config, types: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
    """Return feature and normalization by name, as the configuration has them."""
    features = {**config.input_features, **config.output_features}
    modes = {}
    for name, feature in features.items():
        mode = config.normalization_mapping.get(feature.type.value)
        in_types = not types or feature.type.value in types
        if in_types and mode is not None and mode.value != "IDENTITY":
            modes[name] = (feature, mode.value)
    return modes


def _feature_problems(
    config: Config, before: Processor, after: Processor
) -> Iterator[str]:
    """Yield features that are normalized otherwise than the configuration says."""
    supported = config.type in KINDS  # others may normalize in steps of their own
    sides = {"preprocessor": (before, ()), "postprocessor": (after, ("ACTION",))}
    for side, (pipeline, types) in sides.items():
        found: dict[str, tuple[Any, str]] = {}
        for step in normalizers(pipeline):
            found |= _modes(step)
        if types:
            found = {n: v for n, v in found.items() if v[0].type.value in types}
        expected = _expected(config, types)
        if not found and not supported:
            continue
        for name in sorted({*found, *expected}):
            if _is_stand_in(name):
                continue
            if name not in expected:
                yield f"its {side} normalizes {name!r}, which the policy has not"
            elif name not in found:
                yield f"its {side} does not normalize {name!r} ({expected[name][1]})"
            elif _describe(*found[name]) != _describe(*expected[name]):
                yield (
                    f"its {side} takes {name!r} as {_describe(*found[name])}, the "
                    f"policy as {_describe(*expected[name])}"
                )


def _describe(feature: Any, mode: str) -> str:
    kind, shape = feature.type.value, list(feature.shape)
    return f"{kind} {shape[:1] if kind == 'VISUAL' else shape} {mode}"


def _missing_statistics(before: Processor, after: Processor) -> list[str]:
    missing = [
        f"{name} ({mode}, {type(step).__name__})"
        for step in (*normalizers(before), *normalizers(after))
        for name, (_, mode) in _modes(step).items()
        if not _is_stand_in(name) and len(_used(step)[name]) < 2
    ]
    return [f"no statistics of {missing}"] if missing else []


def _check_numbers(config: Config, pipeline: Processor, side: str) -> None:
    for step in normalizers(pipeline):
        for name, (feature, mode) in _modes(step).items():
            if _is_stand_in(name):
                continue
            values, size = _used(step)[name], feature.shape[0]
            if _may_be_padded(config, name):
                size = min(size, *(value.numel() for value in values.values()))
            check_statistics(
                f"LeRobotPolicyWrapper, {side}, {mode}",
                values,
                feature=name,
                dim=size,
                advice=_ADVICE,
            )


def _may_be_padded(config: Config, name: str) -> bool:
    kind = KINDS.get(config.type)
    return name == _STATE and kind is not None and kind.pads(config)


def _pair_problems(before: Processor, after: Processor) -> Iterator[str]:
    """Yield features that the two pipelines normalize with other numbers."""
    first: dict[str, dict[str, Tensor]] = {}
    second: dict[str, dict[str, Tensor]] = {}
    for steps, known in ((before, first), (after, second)):
        for step in normalizers(steps):
            known |= _used(step)
    for name in sorted(first.keys() & second.keys()):
        for key in first[name].keys() & second[name].keys():
            a, b = first[name][key].cpu(), second[name][key].cpu()
            if a.shape != b.shape or not torch.allclose(a, b, equal_nan=True):
                yield (
                    f"{key} of {name!r} is {a.flatten().tolist()} in the preprocessor "
                    f"and {b.flatten().tolist()} in the postprocessor"
                )


def _relative_problems(
    config: Config, before: Processor, after: Processor
) -> Iterator[str]:
    there = find_step(before, "relative_actions_processor")
    back = find_step(after, "absolute_actions_processor")
    on = [step is not None and step.enabled for step in (there, back)]
    wanted = bool(optional_field(config, "use_relative_actions", False))
    if {*on} != {wanted}:
        yield (
            f"actions are relative to the state for the policy: {wanted}, the "
            f"preprocessor: {on[0]}, the postprocessor: {on[1]}"
        )
    elif back is not None and wanted and back.relative_step is not there:
        yield (
            "the postprocessor makes actions absolute with the state of another "
            "preprocessor"
        )
