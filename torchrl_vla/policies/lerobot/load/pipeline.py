"""Pipeline between a robot and a LeRobot policy: processors, cameras, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from torchrl_vla.policies.lerobot.lerobot_types import Processor


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
        ValueError: autocast does not compute in ``dtype``.
    """

    preprocessor: Processor
    postprocessor: Processor
    rename_map: Mapping[str, str | None] = field(default_factory=dict)
    empty_cameras: Sequence[str] = ()
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                "LeRobotPipeline: expected torch.bfloat16, torch.float16 or None at "
                f"argument 'dtype', got {self.dtype}, in which autocast does not "
                "compute. None computes in the dtype of the weights."
            )
