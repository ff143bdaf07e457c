"""The plugin's processors, which LeRobot finds by their name."""

from __future__ import annotations

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import (
    policy_action_to_transition,
    transition_to_policy_action,
)

from lerobot_policy_linear.configuration_linear import LinearConfig


def make_linear_pre_post_processors(config: LinearConfig, dataset_stats=None):
    features = {**config.input_features, **config.output_features}
    norm_map = config.normalization_mapping
    before = PolicyProcessorPipeline(
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device),
            NormalizerProcessorStep(
                features=features, norm_map=norm_map, stats=dataset_stats
            ),
        ],
        name="policy_preprocessor",
    )
    after = PolicyProcessorPipeline(
        steps=[
            UnnormalizerProcessorStep(
                features=config.output_features, norm_map=norm_map, stats=dataset_stats
            ),
            DeviceProcessorStep(device="cpu"),
        ],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
