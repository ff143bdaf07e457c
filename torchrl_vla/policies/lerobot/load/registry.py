"""What each of LeRobot's policies is: how it is asked, what it reads, what it masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchrl_vla.policies.lerobot.run.invocation import (
    ChunkCall,
    CodebookCall,
    PlannerCall,
    PolicyCall,
    QueueCall,
)
from torchrl_vla.schema import SchemaError


@dataclass(frozen=True)
class PolicyKind:
    """The facts about one policy type that its configuration does not tell.

    Args:
        call: how a chunk is asked for.
        chunk_size: from the configuration, actions that the call returns.
        n_action_steps: from the configuration, how many of them LeRobot executes.
        reads_text: True = the policy follows the instruction.
        resizes_images: from the configuration, True = the policy brings any image to
            its own size without distorting it.
        masks_padding: from the configuration, True = its training loss leaves padded
            actions out.
        continues_chunks: from the configuration, True = a chunk can be guided to
            continue another.
        flow_steps: from the configuration, Euler steps from noise to a chunk; None =
            it does not flow, or its flow was not exercised.
    """

    call: type[PolicyCall]
    chunk_size: Callable[[Any], int]
    n_action_steps: Callable[[Any], int]
    reads_text: bool
    resizes_images: Callable[[Any], bool]
    masks_padding: Callable[[Any], bool]
    continues_chunks: Callable[[Any], bool] = lambda config: False
    flow_steps: Callable[[Any], int] | None = None


def _with_rtc(config: Any) -> bool:
    return config.rtc_config is not None and config.rtc_config.enabled


def _vla(
    size_field: str,
    *,
    masks: bool,
    continues: Callable[[Any], bool] = lambda config: False,
    flow_steps: Callable[[Any], int] | None = None,
) -> PolicyKind:
    """Return a vision-language-action model that keeps nothing between two chunks."""
    return PolicyKind(
        call=ChunkCall,
        chunk_size=lambda config: config.chunk_size,
        n_action_steps=lambda config: config.n_action_steps,
        reads_text=True,
        resizes_images=lambda config: getattr(config, size_field, None) is not None,
        masks_padding=lambda config: masks,
        continues_chunks=continues,
        flow_steps=flow_steps,
    )


def _diffusion(*, reads_text: bool) -> PolicyKind:
    return PolicyKind(
        call=QueueCall,
        # predict_action_chunk cuts the horizon to what is executed.
        chunk_size=lambda config: config.n_action_steps,
        n_action_steps=lambda config: config.n_action_steps,
        reads_text=reads_text,
        resizes_images=lambda config: False,
        masks_padding=lambda config: config.do_mask_loss_for_padding,
    )


#: The policy types that were exercised here, by their name in LeRobot's registry.
KINDS: dict[str, PolicyKind] = {
    "act": PolicyKind(
        call=ChunkCall,
        chunk_size=lambda config: config.chunk_size,
        n_action_steps=lambda config: config.n_action_steps,
        reads_text=False,
        resizes_images=lambda config: False,
        masks_padding=lambda config: True,
    ),
    "diffusion": _diffusion(reads_text=False),
    "multi_task_dit": _diffusion(reads_text=True),
    "vqbet": PolicyKind(
        call=CodebookCall,
        chunk_size=lambda config: config.action_chunk_size,
        n_action_steps=lambda config: config.action_chunk_size,
        reads_text=False,
        resizes_images=lambda config: False,
        masks_padding=lambda config: False,
    ),
    "tdmpc": PolicyKind(
        call=PlannerCall,
        chunk_size=PlannerCall.steps,
        n_action_steps=PlannerCall.steps,
        reads_text=False,
        resizes_images=lambda config: False,
        masks_padding=lambda config: True,
    ),
    "smolvla": _vla(
        "resize_imgs_with_padding",
        masks=True,
        continues=_with_rtc,
        flow_steps=lambda config: config.num_steps,
    ),
    **dict.fromkeys(
        ("pi0", "pi05"),
        _vla(
            "image_resolution",
            masks=False,
            continues=_with_rtc,
            flow_steps=lambda config: config.num_inference_steps,
        ),
    ),
    "xvla": _vla("resize_imgs_with_padding", masks=False),
}

#: Why a registered policy type is not among them.
NOT_EXERCISED: dict[str, str] = {
    "gaussian_actor": "it has no chunk: predict_action_chunk is not implemented",
    "sac": "it has no chunk: predict_action_chunk is not implemented",
    "reward_classifier": "it is a classifier of rewards and has no actions",
    "sarm": "it is a reward model and has no actions",
    "lingbot_va": "its chunks depend on a cache of all executed actions in the policy",
    **dict.fromkeys(
        (
            "eo1",
            "evo1",
            "fastwam",
            "groot",
            "molmoact2",
            "pi0_fast",
            "vla_jepa",
            "wall_x",
        ),
        "its backbone comes from the Hub even for an untrained policy, so that it has "
        "not been run here",
    ),
}


def kind_of(policy_type: str) -> PolicyKind:
    """Return what is known about a policy type.

    Raises:
        SchemaError: it has not been exercised; says why and what to do.
    """
    if policy_type in KINDS:
        return KINDS[policy_type]
    why = NOT_EXERCISED.get(policy_type, "it is none of LeRobot's 0.4.4 or 0.6")
    raise SchemaError(
        f"LeRobotPolicyWrapper: expected a policy of type {sorted(KINDS)}, got "
        f"{policy_type!r}: {why}. If its predict_action_chunk keeps no state, pass "
        "predict_fn=lambda policy, batch: policy.predict_action_chunk(batch) with "
        "action_dim and chunk_size, and compare the actions with LeRobot's own."
    )
