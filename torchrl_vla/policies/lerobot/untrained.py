"""Untrained LeRobot policies for a robot that is described by its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl_vla.policies.lerobot.lerobot_types import Config, PredictFunction
from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import find_plugins
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.robot_fit import (
    RelativeStatistics,
    RobotFit,
    lerobot_statistics,
)
from torchrl_vla.policies.lerobot.registry import kind_of
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
)

_CALLER = "make_lerobot_policy"
#: ImageNet's channel statistics, which LeRobot normalizes images with by default.
_IMAGE_STATISTICS = {
    "mean": [[[0.485]], [[0.456]], [[0.406]]],
    "std": [[[0.229]], [[0.224]], [[0.225]]],
    "min": [[[0.0]]] * 3,
    "max": [[[1.0]]] * 3,
    "q01": [[[0.0]]] * 3,
    "q99": [[[1.0]]] * 3,
}


def make_lerobot_policy(
    policy_type: str,
    metadata: RobotDatasetMetadata,
    *,
    image_sizes: Mapping[str | None, tuple[int, int, int]] | None = None,
    environment_statistics: FeatureStatistics | None = None,
    instructions: InstructionTable | None = None,
    device: str = "cpu",
    config: Mapping[str, Any] | None = None,
    relative_statistics: RelativeStatistics | None = None,
    predict_fn: PredictFunction | None = None,
) -> LeRobotPolicyWrapper:
    """Make an untrained LeRobot policy with processors for a dataset.

    Sizes and statistics are those of the metadata. The policy is in training mode.

    Args:
        policy_type: of LeRobot's registry, e.g. ``"act"``.
        metadata: of the training data, with statistics of actions and states.
        image_sizes: ``(C, h, w)`` of each camera; the key None is one image without a
            camera's name.
        environment_statistics: of ``("observation", "environment_state")``; None = the
            policy does not read it.
        instructions: table that gives instruction ids their texts.
        device: where the policy runs.
        config: fields of the policy's configuration, e.g. ``{"chunk_size": 20}``.
        relative_statistics: ``(mask, steps) -> FeatureStatistics`` of actions minus the
            current state, for ``use_relative_actions``.
        predict_fn: of :class:`LeRobotPolicyWrapper`; then any registered type is taken.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        SchemaError: the metadata lacks sizes or statistics, the type is not
            supported, or LeRobot refuses the configuration.
    """
    factory = import_extra("lerobot.policies.factory", "lerobot", _CALLER)
    if predict_fn is None:
        kind_of(policy_type)
    find_plugins(policy_type)
    if "pretrained_path" in (config or {}):
        raise SchemaError(
            f"{_CALLER}: expected no 'pretrained_path' in config for a new policy, got "
            f"one. fit_lerobot_policy(folder, dataset) goes on from a checkpoint."
        )
    fit = RobotFit(metadata, environment_statistics, relative_statistics, _CALLER)
    statistics: dict[str, Any] = lerobot_statistics(metadata, environment_statistics)
    features = _make_features(metadata, image_sizes or {}, environment_statistics)
    for name in features["input_features"]:
        if name.startswith("observation.image"):
            statistics[name] = _IMAGE_STATISTICS
    try:
        policy_config: Config = factory.make_policy_config(
            policy_type, **features, device=device, push_to_hub=False, **(config or {})
        )
        policy = factory.get_policy_class(policy_type)(policy_config)
    except (TypeError, ValueError, OSError, NotImplementedError) as error:
        raise SchemaError(
            f"{_CALLER}: expected a configuration that LeRobot's {policy_type!r} "
            f"takes, got {type(error).__name__}: {error}. Inputs are "
            f"{sorted(features['input_features'])}; change fields with config={{...}} "
            "(offline: pretrained_backbone_weights=None)."
        ) from error
    for name, value in fit.config_changes(policy_config).items():
        setattr(policy_config, name, value)
    before, after = factory.make_pre_post_processors(
        policy_config, dataset_stats=statistics
    )
    fit.fit_processors(policy_config, before, after)
    policy.to(device).train()
    return LeRobotPolicyWrapper(
        policy,
        pipeline=LeRobotPipeline(before, after),
        instructions=instructions,
        predict_fn=predict_fn,
    )


def _make_features(
    metadata: RobotDatasetMetadata,
    image_sizes: Mapping[str | None, tuple[int, int, int]],
    environment_statistics: FeatureStatistics | None,
) -> dict[str, dict[str, Any]]:
    """Return the inputs and outputs of a policy as LeRobot's configuration has them."""
    types = import_extra("lerobot.configs.types", "lerobot", _CALLER)
    feature, kinds = types.PolicyFeature, types.FeatureType
    inputs = {}
    if metadata.state_dim is not None:
        inputs["observation.state"] = feature(kinds.STATE, (metadata.state_dim,))
    if environment_statistics is not None:
        size = (environment_statistics.dim,)
        inputs["observation.environment_state"] = feature(kinds.ENV, size)
    for camera, image_size in image_sizes.items():
        name = "observation.image" if camera is None else f"observation.images.{camera}"
        inputs[name] = feature(kinds.VISUAL, tuple(image_size))
    outputs = {"action": feature(kinds.ACTION, (metadata.action_dim,))}
    return {"input_features": inputs, "output_features": outputs}
