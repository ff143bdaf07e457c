"""Pipeline between a robot and a LeRobot policy: processors, cameras, precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torchrl_vla.policies.lerobot.lerobot_types import Processor
from torchrl_vla.schema import SchemaError, import_extra

_CALLER = "LeRobotPolicyWrapper.from_pretrained"


@dataclass(frozen=True)
class LeRobotPipeline:
    """Hold what stands between a robot and a policy of LeRobot's.

    Args:
        preprocessor: robot space to model space, made with the policy by LeRobot's
            ``make_pre_post_processors``.
        postprocessor: model space to robot space, likewise.
        rename_map: from the robot's cameras to the policy's; None = hidden from the
            policy.
        empty_cameras: the policy's cameras that the robot does not have.
        dtype: to compute in, by autocast as LeRobot's ``use_amp`` does; weights and
            chunk stay float32. None = as the weights are.

    Raises:
        SchemaError: a feature is normalized without statistics.
    """

    preprocessor: Processor
    postprocessor: Processor
    rename_map: Mapping[str, str | None] = field(default_factory=dict)
    empty_cameras: Sequence[str] = ()
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        # LeRobot's normalizer passes a feature through unchanged without statistics.
        missing: list[str] = []
        for step in self._normalizers():
            for name, feature in step.features.items():
                mode = step.norm_map.get(feature.type)
                needed = mode is not None and mode.value != "IDENTITY"
                stand_in = ".empty_camera_" in name
                if needed and not stand_in and not step._tensor_stats.get(name):
                    missing.append(f"{name} ({mode.value}, {type(step).__name__})")
        if missing:
            raise SchemaError(
                "LeRobotPipeline: expected statistics of every feature that is "
                f"normalized, got none of {missing}. LeRobot would leave them "
                "unnormalized in silence. Load it with from_pretrained(..., statistics="
                "{<feature>: {'mean': ..., 'std': ...}}), or make the processors with "
                "dataset_stats=..."
            )

    @classmethod
    def with_statistics(
        cls,
        preprocessor: Processor,
        postprocessor: Processor,
        statistics: Mapping[str, Mapping[str, Any]],
    ) -> LeRobotPipeline:
        """Return processors whose statistics are replaced.

        Args:
            preprocessor: of a checkpoint.
            postprocessor: of the checkpoint.
            statistics: by feature; replace those of the features that they name, as
                LeRobot does when it trains a checkpoint on other data.
        """
        module = import_extra(
            "lerobot.processor.normalize_processor", "lerobot", _CALLER
        )
        new = []
        for pipeline in (preprocessor, postprocessor):
            known: dict[str, Any] = {}
            for step in _normalizers(pipeline):
                known |= step._tensor_stats
            new.append(module.hotswap_stats(pipeline, {**known, **statistics}))
        return cls(*new)

    def _normalizers(self) -> Iterator[Any]:
        yield from _normalizers(self.preprocessor)
        yield from _normalizers(self.postprocessor)


def _normalizers(pipeline: Processor) -> Iterator[Any]:
    """Yield a pipeline's steps that normalize or denormalize."""
    for step in pipeline.steps:
        if getattr(step, "norm_map", None) is not None:
            yield step
