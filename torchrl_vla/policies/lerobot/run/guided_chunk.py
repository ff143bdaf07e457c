"""Real-time chunking through LeRobot's own interface."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import (
    Batch,
    Config,
    Policy,
    optional_field,
)
from torchrl_vla.policies.lerobot.run.seeded_noise import SeededNoise
from torchrl_vla.schema import (
    GUIDE_CHUNK_KEY,
    GUIDE_WEIGHT_KEY,
    MissingKeyError,
    SchemaError,
)

#: LeRobot's schedules and ours, which have the same weights.
_SCHEDULES = {
    "LINEAR": "LinearPrefix()",
    "EXP": "ExponentialPrefix()",
    "ONES": "OnesPrefix()",
    "ZEROS": "ZerosPrefix()",
}


class GuidedCall:
    """Call a flow policy of LeRobot's for chunks that continue others.

    LeRobot computes the weights from its configuration's schedule and two numbers: the
    frozen positions and those that the old chunk covers. Both are read off the given
    weights, and weights of another schedule are refused. A call takes one pair of
    numbers, so batch elements are grouped by theirs.

    Args:
        config: of the policy, with an ``rtc_config`` that is enabled.

    Raises:
        SchemaError: LeRobot would guide by the old chunk in another joint convention.
    """

    #: The keys that are read beside the observations.
    keys: tuple[NestedKey, ...] = (GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY)

    def __init__(self, config: Config) -> None:
        if optional_field(config, "adapt_to_pi_aloha", False):
            raise SchemaError(
                "LeRobotPolicyWrapper: expected rtc_config=None for a policy with "
                "adapt_to_pi_aloha=True, got one: LeRobot guides its joints by the old "
                "chunk's before it brings them to the same convention. Pass "
                "overrides={'rtc_config': None}."
            )
        self.schedule = str(config.rtc_config.prefix_attention_schedule.value)

    def read(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor] | None:
        """Return guides ``[N, H, A]`` in robot space and weights ``[N, H]``.

        None where there are none, or where no weight is positive.

        Raises:
            MissingKeyError: there is a guide without its weight.
        """
        guide = tensordict.get(GUIDE_CHUNK_KEY, None)
        if guide is None:
            return None
        weight = tensordict.get(GUIDE_WEIGHT_KEY, None)
        if weight is None:
            raise MissingKeyError(
                "LeRobotPolicyWrapper: expected a float [*B, H] at "
                f"{GUIDE_WEIGHT_KEY!r}, got only {GUIDE_CHUNK_KEY!r}. RealTimeChunking "
                "writes both."
            )
        if not (weight > 0).any():
            return None
        batch = tensordict.batch_dims
        guide = guide.reshape(-1, *guide.shape[batch:])
        return guide, weight.reshape(-1, *weight.shape[batch:])

    def __call__(
        self,
        policy: Policy,
        frame: Batch,
        guide: Tensor,
        weight: Tensor,
        noise: SeededNoise | None = None,
    ) -> Tensor:
        """Return the chunks ``[N, H, A]`` in model space.

        Args:
            policy: LeRobot's.
            frame: preprocessed observations ``[N, ...]``.
            guide: ``[N, H, A]`` in model space.
            weight: ``[N, H]``.
            noise: None = LeRobot draws it.

        Raises:
            SchemaError: the weights are not of LeRobot's schedule.
        """
        held = torch.stack([(weight > 1 - 1e-6).sum(-1), (weight > 0).sum(-1)], -1)
        pairs, groups = held.unique(dim=0, return_inverse=True)
        parts: list[Tensor] = []
        indices: list[Tensor] = []
        for group, (frozen, overlap) in enumerate(pairs.tolist()):
            index = (groups == group).nonzero().squeeze(-1)
            options: dict[str, Any] = {}
            if noise is not None:
                options["noise"] = noise.take(index)
            if overlap:
                self._check_schedule(policy, weight[index], frozen, overlap)
                options |= {
                    "inference_delay": frozen,
                    "prev_chunk_left_over": guide[index, :overlap],
                    "execution_horizon": overlap,
                }
            part = _take(frame, index, len(guide))
            parts.append(policy.predict_action_chunk(part, **options))
            indices.append(index)
        return torch.cat(parts)[torch.cat(indices).argsort()]

    def _check_schedule(
        self, policy: Policy, weight: Tensor, frozen: int, overlap: int
    ) -> None:
        size = weight.shape[-1]
        theirs = policy.rtc_processor.get_prefix_weights(frozen, overlap, size)
        if torch.allclose(weight, theirs.to(weight).expand_as(weight), atol=1e-4):
            return
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected weights of the schedule {self.schedule} "
            f"at {GUIDE_WEIGHT_KEY!r}, the one of the policy's rtc_config, got "
            f"{weight[0].tolist()}. Build RealTimeChunking with schedule="
            f"{_SCHEDULES[self.schedule]}, or load the policy with another "
            "prefix_attention_schedule. No action was sent."
        )


def _take(frame: Batch, index: Tensor, size: int) -> Batch:
    """Return some elements of LeRobot's batch, whose texts are lists."""
    if len(index) == size:
        return frame
    out: Batch = {}
    for name, value in frame.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == size:
            value = value[index]
        elif isinstance(value, list) and len(value) == size:
            value = [value[i] for i in index.tolist()]
        out[name] = value
    return out
