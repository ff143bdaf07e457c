"""A new policy of LeRobot's for a robot that is described by its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrl_vla.policies.lerobot.load.registry import kind_of
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
)

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
    """Make an untrained policy of LeRobot's with processors that know the data.

    Sizes and statistics come from the metadata, so that what the policy is trained on
    and what it is executed with cannot disagree. It is in training mode.

    Args:
        policy_type: of LeRobot's registry, e.g. ``"act"``.
        metadata: of the training data, with statistics of actions and states.
        image_sizes: ``(C, h, w)`` of each camera; the key None is one image without a
            camera's name.
        environment_statistics: of ``("observation", "environment_state")``, for a
            policy that is to read it.
        instructions: table that gives instruction ids their texts.
        device: where the policy runs.
        config: fields of the policy's configuration, e.g. ``{"chunk_size": 20}``.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        SchemaError: the metadata lacks sizes or statistics, the type was not
            exercised, or LeRobot refuses the configuration.
    """
    caller = "make_lerobot_policy"
    factory = import_extra("lerobot.policies.factory", "lerobot", caller)
    types = import_extra("lerobot.configs.types", "lerobot", caller)
    kind_of(policy_type)
    if metadata.action_dim is None or metadata.action_statistics is None:
        raise SchemaError(
            f"{caller}: expected metadata with action_statistics, got "
            f"{metadata.dataset_id!r} without. Compute them with "
            "FeatureStatistics.from_samples."
        )
    feature, kinds = types.PolicyFeature, types.FeatureType
    statistics: dict[str, Any] = lerobot_statistics(metadata, environment_statistics)
    inputs = {}
    if metadata.state_dim is not None:
        inputs["observation.state"] = feature(kinds.STATE, (metadata.state_dim,))
        if metadata.state_statistics is None:
            raise SchemaError(
                f"{caller}: expected state_statistics beside state_dim="
                f"{metadata.state_dim}, got none in {metadata.dataset_id!r}."
            )
    if environment_statistics is not None:
        size = (environment_statistics.dim,)
        inputs["observation.environment_state"] = feature(kinds.ENV, size)
    for camera, size in (image_sizes or {}).items():
        is_named = camera is not None
        name = f"observation.images.{camera}" if is_named else "observation.image"
        inputs[name] = feature(kinds.VISUAL, tuple(size))
        statistics[name] = _IMAGE_STATISTICS
    outputs = {"action": feature(kinds.ACTION, (metadata.action_dim,))}
    try:
        policy_config = factory.make_policy_config(
            policy_type,
            input_features=inputs,
            output_features=outputs,
            device=device,
            push_to_hub=False,
            **(config or {}),
        )
        policy = factory.get_policy_class(policy_type)(policy_config)
    except (TypeError, ValueError, OSError, NotImplementedError) as error:
        raise SchemaError(
            f"{caller}: expected a configuration that LeRobot's {policy_type!r} takes, "
            f"got {type(error).__name__}: {error}. Inputs are {sorted(inputs)}; change "
            "fields with config={...} (offline: pretrained_backbone_weights=None)."
        ) from error
    preprocessor, postprocessor = factory.make_pre_post_processors(
        policy_config, dataset_stats=statistics
    )
    policy.to(device).train()
    return LeRobotPolicyWrapper(
        policy,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        instructions=instructions,
    )


def lerobot_statistics(
    metadata: RobotDatasetMetadata,
    environment_statistics: FeatureStatistics | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the statistics that there are as LeRobot's processors take them."""
    found = {
        "action": metadata.action_statistics,
        "observation.state": metadata.state_statistics,
        "observation.environment_state": environment_statistics,
    }
    names = ("mean", "std", "min", "max", "q01", "q99")
    return {
        feature: {name: getattr(value, name).float() for name in names}
        for feature, value in found.items()
        if value is not None
    }
