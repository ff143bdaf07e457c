"""Table of the cases that ``torchrl-vla profile`` runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torchrl_vla._internal.named_objects import import_named, is_named_object
from torchrl_vla._internal.option_names import Head
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.errors import ArgumentTypeError, SettingsError

#: A full window of PyTorch's profiler takes 9 steps.
STEPS = 12


@dataclass(frozen=True)
class CaseResources:
    """What lets a large model fit a device, chosen per case and never for all.

    Args:
        optimizer: ``"sgd"`` has no state. AdamW's two tensors of a model of 4 billion
            weights need 16 GB in bfloat16; a profile measures times, which SGD has too.
        bf16: True = autocast to bfloat16.
        checkpointing: True = the forward pass is computed again in the backward pass
            instead of kept.
        deterministic: True = deterministic kernels. Some models fail with them.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    bf16: bool = False
    checkpointing: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class ProfileCase:
    """One training that is profiled.

    Args:
        name: of the case.
        policy: ``"tiny"``; a type of LeRobot's; or a function of your own as
            ``module:function``, which is called with the dataset and returns a policy.
        options: of the policy: ``head``, ``hidden`` and so on of ``make_policy``, or
            fields of LeRobot's configuration.
        batch_size: frames per step.
        steps: optimizer steps.
        resources: optimizer, precision and determinism.
        extra: of ``torchrl-vla``, that the policy needs; None = none.
        packages: packages of the extra that have to be importable.
        may_be_missing: True = where it cannot be installed that is a warning, no
            failure.

    Examples:
        >>> ProfileCase("mine", "tiny", {"head": "flow"}).spec()["steps"]
        12
    """

    name: str
    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 4
    steps: int = STEPS
    resources: CaseResources = CaseResources()
    extra: str | None = None
    packages: tuple[str, ...] = ()
    may_be_missing: bool = False

    def spec(self) -> dict[str, Any]:
        """Return what is recorded of the case in a row."""
        return {
            "steps": self.steps,
            "train_args": [
                f"policy={self.policy}",
                *(f"{name}={value}" for name, value in self.options.items()),
                f"batch_size={self.batch_size}",
                *(f"{name}={v}" for name, v in asdict(self.resources).items()),
            ],
        }


_ACT = {
    "chunk_size": 10,
    "n_action_steps": 4,
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "pretrained_backbone_weights": None,
}
_DIFFUSION = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 3,
    "down_dims": (16, 32),
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "num_inference_steps": 3,
    "pretrained_backbone_weights": None,
    "crop_shape": None,
    "spatial_softmax_num_keypoints": 4,
    "use_group_norm": True,
    "do_mask_loss_for_padding": True,
}
_DETERMINISTIC = CaseResources(deterministic=True)
_SGD = CaseResources(optimizer="sgd")
_SAVING = CaseResources(optimizer="sgd", bf16=True, checkpointing=True)
_BACKBONES = "torchrl_vla.recipes.lerobot_backbones"
_LEROBOT: dict[str, Any] = {"extra": "lerobot", "packages": ("lerobot",)}

#: The cases by name; a case of your own is one more entry, or ``module:name``.
PROFILE_CASES: dict[str, ProfileCase] = {
    case.name: case
    for case in (
        *(
            ProfileCase(f"tiny-{head}", "tiny", {"head": head, "chunk_size": 8})
            for head in get_args(Head)
        ),
        ProfileCase("act", "act", _ACT, resources=_DETERMINISTIC, **_LEROBOT),
        ProfileCase(
            "diffusion", "diffusion", _DIFFUSION, resources=_DETERMINISTIC, **_LEROBOT
        ),
        ProfileCase(
            "smolvla", f"{_BACKBONES}:make_tiny_smolvla", resources=_SGD, **_LEROBOT
        ),
        ProfileCase(
            "pi0", f"{_BACKBONES}:make_tiny_pi0", resources=_SAVING, **_LEROBOT
        ),
    )
}


def find_cases(names: Iterable[str] | None = None) -> list[ProfileCase]:
    """Return cases by name, all of the table without names.

    Args:
        names: keys of ``PROFILE_CASES``, or ``module:name`` of a function of your own
            that returns a :class:`ProfileCase`.

    Raises:
        SettingsError: there is no case of a name; lists them.
        ArgumentTypeError: a function of your own returns something else.

    Examples:
        >>> [case.policy for case in find_cases(["tiny-flow", "act"])]
        ['tiny', 'act']
    """
    if names is None:
        return list(PROFILE_CASES.values())
    found = []
    for name in names:
        if is_named_object(name):
            found.append(_own_case(name))
        elif name in PROFILE_CASES:
            found.append(PROFILE_CASES[name])
        else:
            raise SettingsError(
                f"find_cases: expected cases of {list(PROFILE_CASES)} or a function "
                f"module:name, got {name!r}.{did_you_mean(name, PROFILE_CASES)}"
            )
    return found


def _own_case(name: str) -> ProfileCase:
    case = import_named("find_cases", name)()
    match case:
        case ProfileCase():
            return case
    raise ArgumentTypeError(
        f"find_cases: expected a ProfileCase from {name!r}, got {type(case).__name__}."
    )
