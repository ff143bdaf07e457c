"""Untrained LeRobot policies for a robot that is described by its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import Config
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
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

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        SchemaError: the metadata lacks sizes or statistics, the type is not
            supported, or LeRobot refuses the configuration.
    """
    factory = import_extra("lerobot.policies.factory", "lerobot", _CALLER)
    kind_of(policy_type)
    _check_metadata(metadata)
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
    processors = factory.make_pre_post_processors(
        policy_config, dataset_stats=statistics
    )
    policy.to(device).train()
    return LeRobotPolicyWrapper(
        policy, pipeline=LeRobotPipeline(*processors), instructions=instructions
    )


def _check_metadata(metadata: RobotDatasetMetadata) -> None:
    if metadata.action_dim is None or metadata.action_statistics is None:
        raise SchemaError(
            f"{_CALLER}: expected metadata with action_statistics, got "
            f"{metadata.dataset_id!r} without. Compute them with "
            "FeatureStatistics.from_samples."
        )
    if metadata.state_dim is not None and metadata.state_statistics is None:
        raise SchemaError(
            f"{_CALLER}: expected state_statistics beside state_dim="
            f"{metadata.state_dim}, got none in {metadata.dataset_id!r}. Compute them "
            "with FeatureStatistics.from_samples."
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


def lerobot_statistics(
    metadata: RobotDatasetMetadata,
    environment_statistics: FeatureStatistics | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the statistics of actions and states as LeRobot's processors take them."""
    known = {
        "action": metadata.action_statistics,
        "observation.state": metadata.state_statistics,
        "observation.environment_state": environment_statistics,
    }
    return {
        feature: {
            "mean": value.mean.float(),
            "std": value.std.float(),
            "min": value.min.float(),
            "max": value.max.float(),
            "q01": value.q01.float(),
            "q99": value.q99.float(),
        }
        for feature, value in known.items()
        if value is not None
    }
