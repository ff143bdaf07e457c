"""Registry of supported LeRobot policy types."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torchrl_vla.policies.lerobot.lerobot_types import Config, optional_field
from torchrl_vla.schema import SchemaError


@dataclass(frozen=True)
class PolicyKind:
    """Describe a policy type beyond what its configuration tells.

    Except for ``call`` and ``reads_text``, each fact is a function of the
    configuration. The defaults describe a policy without state between two chunks,
    which neither reads text nor resizes images and whose loss counts padded actions.

    Args:
        call: how a chunk is requested: by ``predict_action_chunk`` alone, after its
            observation queues are filled, likewise with a trained codebook, or from
            the plan of the last call.
        reads_text: True = the policy follows the instruction.
        chunk_size: actions that the call returns.
        n_action_steps: actions of them that LeRobot executes.
        longest_execution: the largest ``n_action_steps`` that a call can serve.
        pads: True = the model pads actions and states of any robot to its own sizes,
            ``max_action_dim`` and ``max_state_dim``.
        resizes_images: True = the policy brings any image to its own size without
            distorting it.
        masks_padding: True = its training loss leaves padded actions out.
        continues_chunks: True = a chunk can be guided to continue another.
        samples: False = its chunk is a function of what it reads.
        noise_shape: ``(H, D)`` of the initial noise that ``predict_action_chunk``
            takes; None = it takes none.
        flow_steps: Euler steps from noise to a chunk; None = the policy does not flow,
            or its flow is untested.
        likelihood_advice: what to do for log-probabilities of one that does not flow.
        without_gradient: patterns of the names of weights that its own loss leaves out
            although they require a gradient, with the reasons; a function of the names.

    Examples:
        >>> PolicyKind(reads_text=True).call
        'chunk'
    """

    call: Literal["chunk", "queue", "codebook", "planner"] = "chunk"
    reads_text: bool = False
    chunk_size: Callable[[Config], int] = lambda config: config.chunk_size
    n_action_steps: Callable[[Config], int] = lambda config: config.n_action_steps
    longest_execution: Callable[[Config], int] = lambda config: config.chunk_size
    pads: Callable[[Config], bool] = lambda config: False
    resizes_images: Callable[[Config], bool] = lambda config: False
    masks_padding: Callable[[Config], bool] = lambda config: False
    continues_chunks: Callable[[Config], bool] = lambda config: False
    samples: bool = True
    noise_shape: Callable[[Config], tuple[int, int]] | None = None
    flow_steps: Callable[[Config], int] | None = None
    likelihood_advice: str = "Its flow is untested here."
    without_gradient: Callable[[Iterable[str]], Mapping[str, str]] = lambda names: {}


def _diffusion(
    *,
    reads_text: bool,
    noise_shape: Callable[[Config], tuple[int, int]] | None = None,
    without_gradient: Mapping[str, str] = {},
) -> PolicyKind:
    return PolicyKind(
        call="queue",
        without_gradient=lambda names: without_gradient,
        reads_text=reads_text,
        # predict_action_chunk cuts the horizon to what is executed.
        chunk_size=lambda config: config.n_action_steps,
        longest_execution=lambda config: config.horizon - config.n_obs_steps + 1,
        masks_padding=lambda config: config.do_mask_loss_for_padding,
        noise_shape=noise_shape,
        likelihood_advice="It denoises by diffusion; a head of that kind with a "
        "likelihood is TinyDiffusionVLA.",
    )


def _planned_steps(config: Config) -> int:
    """Return the actions that LeRobot's TD-MPC executes of one plan.

    Either the first one, ``n_action_repeats`` times, or ``n_action_steps`` of it.
    """
    return max(config.n_action_repeats, config.n_action_steps)


def _with_rtc(config: Config) -> bool:
    return config.rtc_config is not None and config.rtc_config.enabled


def _padded_shape(config: Config) -> tuple[int, int]:
    return config.chunk_size, config.max_action_dim


def _resizes(field: str) -> Callable[[Config], bool]:
    return lambda config: optional_field(config, field) is not None


def _behind_the_cache(names: Iterable[str]) -> Mapping[str, str]:
    """Return pi0's weights behind the keys and values that its action expert reads."""
    layers = [int(n[1]) for name in names if (n := _LANGUAGE_LAYER.search(name))]
    why = "the action expert reads keys and values, and this comes after the last ones"
    last = f"*language_model.layers.{max(layers, default=0)}"
    parts = ("self_attn.o_proj.*", "mlp.*", "post_attention_layernorm.*")
    behind = [f"{last}.{part}" for part in parts]
    return dict.fromkeys([*behind, "*language_model.norm.*", "*lm_head.*"], why)


_LANGUAGE_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")

_PI = PolicyKind(
    reads_text=True,
    without_gradient=_behind_the_cache,
    pads=lambda config: True,
    resizes_images=_resizes("image_resolution"),
    continues_chunks=_with_rtc,
    noise_shape=_padded_shape,
    flow_steps=lambda config: config.num_inference_steps,
)

#: The supported policy types, by their name in LeRobot's registry. A type of your own
#: is one more entry.
KINDS: dict[str, PolicyKind] = {
    "act": PolicyKind(
        samples=False,
        masks_padding=lambda config: True,
        likelihood_advice="It regresses its chunk; a head of that kind with a "
        "likelihood is TinyGaussianVLA.",
    ),
    "diffusion": _diffusion(
        reads_text=False,
        noise_shape=lambda config: (config.horizon, config.action_feature.shape[0]),
    ),
    "multi_task_dit": _diffusion(
        reads_text=True,
        without_gradient={
            "*vision_model.post_layernorm.*": "the class token is read before it"
        },
    ),
    "vqbet": PolicyKind(
        call="codebook",
        without_gradient=lambda names: {
            "*": "the codebook is trained alone at first, and the rest alone after it"
        },
        chunk_size=lambda config: config.action_chunk_size,
        n_action_steps=lambda config: config.action_chunk_size,
        longest_execution=lambda config: config.action_chunk_size,
        likelihood_advice="It samples codes of a codebook; a head that samples tokens "
        "is TinyTokenVLA.",
    ),
    "tdmpc": PolicyKind(
        call="planner",
        chunk_size=_planned_steps,
        n_action_steps=_planned_steps,
        longest_execution=lambda config: max(config.horizon, config.n_action_repeats),
        masks_padding=lambda config: True,
        likelihood_advice="It plans with a world model of its own: train it with "
        "lerobot-train.",
    ),
    "smolvla": PolicyKind(
        reads_text=True,
        pads=lambda config: True,
        resizes_images=_resizes("resize_imgs_with_padding"),
        masks_padding=lambda config: True,
        continues_chunks=_with_rtc,
        noise_shape=_padded_shape,
        flow_steps=lambda config: config.num_steps,
    ),
    "pi0": _PI,
    "pi05": _PI,
    "xvla": PolicyKind(
        reads_text=True,
        pads=lambda config: config.action_mode.lower() == "auto",
        resizes_images=_resizes("resize_imgs_with_padding"),
    ),
}

_FROM_HUB = "eo1 evo1 fastwam groot molmoact2 pi0_fast vla_jepa wall_x"

#: Reasons why other types of LeRobot's registry are not supported.
NOT_EXERCISED: dict[str, str] = {
    "gaussian_actor": "it has no chunk: predict_action_chunk is not implemented",
    "sac": "it has no chunk: predict_action_chunk is not implemented",
    "reward_classifier": "it is a classifier of rewards and has no actions",
    "sarm": "it is a reward model and has no actions",
    "lingbot_va": "its chunks depend on a cache of all executed actions in the policy",
    **dict.fromkeys(
        _FROM_HUB.split(),
        "its backbone comes from the Hub even for an untrained policy, so that it is "
        "untested here",
    ),
}


def kind_of(policy_type: str) -> PolicyKind:
    """Return the registered facts about a policy type.

    Raises:
        SchemaError: the type is not supported; says why and what to do.
    """
    if policy_type in KINDS:
        return KINDS[policy_type]
    why = NOT_EXERCISED.get(policy_type, "it is none of LeRobot's 0.4.4 or 0.6")
    raise SchemaError(
        f"LeRobotPolicyWrapper: expected a policy of type {sorted(KINDS)}, got "
        f"{policy_type!r}: {why}. If its predict_action_chunk keeps no state, register "
        f"it with torchrl_vla.policies.lerobot.KINDS[{policy_type!r}] = PolicyKind("
        "reads_text=...), or pass predict_fn=(policy, batch) -> chunk, which is called "
        "between its processors; and compare the actions with LeRobot's own."
    )


def horizon_problems(config: Config, kind: PolicyKind) -> Iterator[str]:
    """Yield what no call can serve in a configuration, which LeRobot finds late.

    Args:
        config: LeRobot's, or an object with its fields.
        kind: the facts about its type.
    """
    counts = {"n_obs_steps": config.n_obs_steps, "chunk": kind.chunk_size(config)}
    counts["n_action_steps"] = steps = kind.n_action_steps(config)
    if kind.flow_steps is not None:
        counts["number of flow steps"] = kind.flow_steps(config)
    for name, count in counts.items():
        if count < 1:
            yield f"a {name} >= 1, got {count}"
    if steps > (longest := kind.longest_execution(config)):
        yield f"n_action_steps <= {longest}, which is all of a call, got {steps}"
    if kind.call in ("chunk", "planner") and config.n_obs_steps > 1:
        yield f"n_obs_steps 1, as its call reads one, got {config.n_obs_steps}"
    coefficient = optional_field(config, "temporal_ensemble_coeff")
    if coefficient is not None and steps > 1:
        yield f"n_action_steps 1 beside a temporal_ensemble_coeff, got {steps}"
    trained = optional_field(config, "num_train_timesteps")
    sampled = optional_field(config, "num_inference_steps")
    if None not in (trained, sampled) and not 1 <= sampled <= trained:
        yield f"num_inference_steps in 1..num_train_timesteps={trained}, got {sampled}"
