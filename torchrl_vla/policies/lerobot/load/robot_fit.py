"""Fit of a LeRobot policy's configuration and processors to a robot's data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import (
    Config,
    Processor,
    optional_field,
)
from torchrl_vla.policies.lerobot.load.processor_checks import (
    find_step,
    normalizers,
)
from torchrl_vla.policies.lerobot.registry import KINDS
from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata, SchemaError

#: ``(mask, steps) -> statistics`` of actions from which the state of the current frame
#: is subtracted: where ``mask`` bool ``[A]`` is True, at ``steps`` from that frame.
RelativeStatistics: TypeAlias = Callable[[list[bool], range], FeatureStatistics]

_ACTION, _STATE = "action", "observation.state"
_ENVIRONMENT = "observation.environment_state"


@dataclass(frozen=True)
class RobotFit:
    """Describe the robot's data that a LeRobot policy is fitted to.

    Args:
        metadata: with statistics of actions and states.
        environment_statistics: of the simulator's state; None = not in the data.
        relative_statistics: of relative actions, for a policy that predicts them.
        caller: the function that was called, for errors.

    Raises:
        SchemaError: the metadata lack the size of the actions, or statistics.

    Examples:
        >>> RobotFit(RobotDatasetMetadata("arm"))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: fit_lerobot_policy: expected metadata with \
action_statistics, got 'arm' without. Compute them with FeatureStatistics.from_samples.
    """

    metadata: RobotDatasetMetadata
    environment_statistics: FeatureStatistics | None = None
    relative_statistics: RelativeStatistics | None = None
    caller: str = "fit_lerobot_policy"

    def __post_init__(self) -> None:
        metadata = self.metadata
        if metadata.action_dim is None or metadata.action_statistics is None:
            raise SchemaError(
                f"{self.caller}: expected metadata with action_statistics, got "
                f"{metadata.dataset_id!r} without. Compute them with "
                "FeatureStatistics.from_samples."
            )
        if metadata.state_dim is not None and metadata.state_statistics is None:
            raise SchemaError(
                f"{self.caller}: expected state_statistics beside state_dim="
                f"{metadata.state_dim}, got none in {metadata.dataset_id!r}. Compute "
                "them with FeatureStatistics.from_samples."
            )

    def config_changes(self, config: Config) -> dict[str, Any]:
        """Return the fields of a configuration that the robot changes.

        As in LeRobot's own training, a model that pads takes any size up to its own.

        Raises:
            SchemaError: the policy does not take the robot's sizes.
        """
        sizes = self._sizes()
        changes: dict[str, Any] = {}
        for field in ("input_features", "output_features"):
            features = dict(getattr(config, field))
            for name in sizes.keys() & features.keys():
                shape = self._fit_size(config, name, features[name].shape[0])
                features[name] = dataclasses.replace(features[name], shape=shape)
            changes[field] = features
        names = self.metadata.action_names
        fields = {field.name for field in dataclasses.fields(config)}
        if names is not None and "action_feature_names" in fields:
            changes["action_feature_names"] = list(names)
        return changes

    def fit_processors(
        self, config: Config, before: Processor, after: Processor
    ) -> None:
        """Give processors the sizes and the statistics of the robot's data, in place.

        The statistics of images stay.

        Raises:
            SchemaError: statistics of relative actions cannot be had.
        """
        statistics = lerobot_statistics(self.metadata, self.environment_statistics)
        relative = find_step(before, "relative_actions_processor")
        if relative is not None:
            self._fit_relative_step(config, relative)
            absolute = find_step(after, "absolute_actions_processor")
            if absolute is not None:
                absolute.enabled = relative.enabled
            if relative.enabled:
                mask = relative._build_mask(self.metadata.action_dim)
                statistics[_ACTION] = self._relative(config, mask)
        replace_statistics(before, after, statistics, config)

    def _sizes(self) -> dict[str, int | None]:
        environment = self.environment_statistics
        return {
            _ACTION: self.metadata.action_dim,
            _STATE: self.metadata.state_dim,
            _ENVIRONMENT: None if environment is None else environment.dim,
        }

    def _fit_size(self, config: Config, name: str, own: int) -> tuple[int]:
        size = self._sizes()[name]
        kind = KINDS.get(config.type)
        most = own
        if kind is not None and kind.pads(config) and name != _ENVIRONMENT:
            most = config.max_action_dim if name == _ACTION else config.max_state_dim
        if size is None:
            raise SchemaError(
                f"{self.caller}: expected {name!r} in {self.metadata.dataset_id!r}, "
                f"which a policy of type {config.type!r} reads, got none. Choose a "
                "checkpoint that does without, or data that have it."
            )
        if size == own or (most != own and size <= most):
            return (size,)
        if most == own:
            way_out = (
                f"Its weights have that size: train a new one with {self.caller}("
                f"{config.type!r}, dataset). Only models that pad, such as pi0 and "
                "SmolVLA, take other sizes."
            )
        else:
            way_out = "It pads to that size and no further: use a larger model."
        raise SchemaError(
            f"{self.caller}: expected {'at most ' * (most != own)}{most} numbers at "
            f"{name!r} for the checkpoint of type {config.type!r}, got {size} in "
            f"{self.metadata.dataset_id!r}. {way_out}"
        )

    def _fit_relative_step(self, config: Config, step: Any) -> None:
        step.enabled = bool(optional_field(config, "use_relative_actions", False))
        if not step.enabled:
            return
        step.exclude_joints = list(
            optional_field(config, "relative_exclude_joints", ())
        )
        # The data's, or the checkpoint's own where the data have none.
        step.action_names = names = optional_field(config, "action_feature_names")
        if step.exclude_joints and len(names or ()) != self.metadata.action_dim:
            raise SchemaError(
                f"{self.caller}: expected {self.metadata.action_dim} action_names in "
                f"the metadata of {self.metadata.dataset_id!r}, by which a policy of "
                f"relative actions finds the joints {step.exclude_joints} that stay "
                f"absolute, got {names}. Pass them as config={{'action_feature_names': "
                "[...]}, or config={'relative_exclude_joints': []}."
            )

    def _relative(self, config: Config, mask: list[bool]) -> dict[str, Tensor]:
        state = self.metadata.state_dim or 0
        if state < len(mask):
            raise SchemaError(
                f"{self.caller}: expected a state with the {len(mask)} numbers that "
                f"the actions are relative to, got {state} in "
                f"{self.metadata.dataset_id!r}. Pass config={{'use_relative_actions': "
                "False}, or a state that has the joints of the action first."
            )
        if self.relative_statistics is None:
            raise SchemaError(
                f"{self.caller}: expected statistics of relative actions for a policy "
                "with use_relative_actions=True, got only those of absolute ones in "
                f"{self.metadata.dataset_id!r}. fit_lerobot_policy(type, dataset) "
                "computes them."
            )
        steps = config.action_delta_indices
        found = self.relative_statistics(mask, range(steps[0], steps[0] + len(steps)))
        return _as_lerobots(found)


def replace_statistics(
    before: Processor,
    after: Processor,
    statistics: Mapping[str, Mapping[str, Any]],
    config: Config | None = None,
) -> None:
    """Replace statistics of features in a policy's processors, in place.

    Args:
        before: the preprocessor.
        after: the postprocessor.
        statistics: by feature.
        config: whose features and normalizations the processors take, as in LeRobot's
            training; None = they keep their own.
    """
    for pipeline in (before, after):
        for step in normalizers(pipeline):
            if config is not None:
                inputs = {} if pipeline is after else config.input_features
                step.features = {**inputs, **config.output_features}
                step.norm_map = dict(config.normalization_mapping)
            step.stats = {**step._tensor_stats, **statistics}
            step.__post_init__()  # which makes LeRobot's tensors of them


def lerobot_statistics(
    metadata: RobotDatasetMetadata,
    environment_statistics: FeatureStatistics | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the statistics of actions and states as LeRobot's processors take them."""
    known = {
        _ACTION: metadata.action_statistics,
        _STATE: metadata.state_statistics,
        _ENVIRONMENT: environment_statistics,
    }
    return {name: _as_lerobots(value) for name, value in known.items() if value}


def _as_lerobots(value: FeatureStatistics) -> dict[str, Tensor]:
    value = value.cover_sparse()
    names = ("mean", "std", "min", "max", "q01", "q99")
    return {name: getattr(value, name).float() for name in names}
