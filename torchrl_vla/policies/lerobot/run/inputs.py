"""A tensordict of observations as the dictionary that a LeRobot policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor

from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    HISTORY_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    SchemaError,
)
from torchrl_vla.schema.lerobot_names import to_canonical

_CALLER = "LeRobotPolicyWrapper"
#: The policies that LeRobot shows a blank image where a camera is missing.
_FILL_ABSENT_CAMERAS = ("smolvla", "pi0", "pi05")


@dataclass(frozen=True)
class PolicyInputs:
    """What a LeRobot policy's configuration says that it reads.

    Args:
        images: size ``(C, h, w)`` of each camera, by LeRobot's name of it.
        states: size of each state vector, by LeRobot's name of it.
        history_size: observations that it looks back on, the current one included.
        resizes_images: True = it brings images of any size to its own.
    """

    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    history_size: int = 1
    resizes_images: bool = False

    @classmethod
    def from_config(
        cls, config: Any, resizes_images: bool, absent: tuple[str, ...]
    ) -> PolicyInputs:
        """Read them from a policy's configuration.

        Args:
            config: LeRobot's ``PreTrainedConfig``.
            resizes_images: see the class.
            absent: the policy's cameras that the robot does not have.

        Raises:
            SchemaError: an absent camera is none of the policy's, or an input is of a
                type that has no place in our schema; the policy needs all its cameras.
        """
        images, states = {}, {}
        for name, feature in config.input_features.items():
            kind, size = feature.type.value, tuple(feature.shape)
            if kind == "VISUAL":
                images[name] = size
            elif to_canonical(name) in (STATE_KEY, ENVIRONMENT_STATE_KEY):
                states[name] = size[0]
            elif kind != "LANGUAGE":
                raise SchemaError(
                    f"{_CALLER}: expected images, 'observation.state' and "
                    f"'observation.environment_state' as the policy's inputs, got "
                    f"{name!r} of type {kind}. Pass predict_fn to feed it yourself."
                )
        unknown = [name for name in absent if _full_name(name) not in images]
        if unknown:
            raise SchemaError(
                f"{_CALLER}: expected some of the policy's cameras {sorted(images)} at "
                f"argument 'empty_cameras', got {unknown}."
            )
        if absent and config.type not in _FILL_ABSENT_CAMERAS:
            raise SchemaError(
                f"{_CALLER}: expected every camera of a policy of type "
                f"{config.type!r}, which cannot do without one, got "
                f"empty_cameras={list(absent)}. Only {list(_FILL_ABSENT_CAMERAS)} have "
                "a stand-in."
            )
        for name in absent:
            del images[_full_name(name)]
        # Stand-ins that LeRobot adds by `config.empty_cameras` and fills itself.
        for index in range(getattr(config, "empty_cameras", 0)):
            images.pop(f"observation.images.empty_camera_{index}", None)
        return cls(images, states, config.n_obs_steps, resizes_images)


def in_history(key: NestedKey | None, inputs: PolicyInputs) -> NestedKey | None:
    """Return where the key's history lies, for a policy that looks back."""
    if key is None or inputs.history_size == 1:
        return key
    path = (key,) if isinstance(key, str) else key
    return (HISTORY_KEY, *path[1:]) if path[0] == OBSERVATION_KEY else key


def read_size(name: str, given: int | None, read: int) -> int:
    """Return a size that the configuration says; one that is given must agree."""
    if given is not None and given != read:
        raise ValueError(
            f"LeRobotPolicyWrapper: expected {name}={read}, as the policy's "
            f"configuration says, got {given}. Leave it out."
        )
    return read


def what_to_do(policy: Any, inputs: PolicyInputs | None) -> str:
    """Return what to do when an input is missing."""
    if inputs is None:
        return (
            "Name another key, or build the wrapper with image_key=None or "
            "use_state=False."
        )
    if inputs.history_size == 1:
        return f"{type(policy).__name__} was trained with it: name its key."
    return (
        f"The policy looks back on {inputs.history_size} observations: append "
        "policy.make_environment_transform() to the environment, or "
        f"ObservationHistory({inputs.history_size}, storage=...) to the buffer."
    )


def match_cameras(
    given: list[str],
    wanted: list[str],
    rename_map: Mapping[str, str | None],
) -> dict[str, str]:
    """Pair the cameras that there are with those that the policy reads.

    One image that has no camera's name fits a policy of one camera.

    Args:
        given: LeRobot's names of the cameras in the tensordict.
        wanted: LeRobot's names of the policy's cameras.
        rename_map: from given to wanted names, with or without
            ``"observation.images."``; None = not shown to the policy.

    Returns:
        From wanted to given names.

    Raises:
        SchemaError: a camera on either side has no partner; lists both sides.
    """
    renamed: dict[str, str] = {}
    for name in given:
        target = rename_map.get(name, rename_map.get(_short_name(name), name))
        if target is not None:
            renamed[_full_name(target)] = name
    if len(renamed) == len(wanted) == 1 and "observation.image" in (*renamed, *wanted):
        return {wanted[0]: next(iter(renamed.values()))}
    spare = sorted(set(renamed) - set(wanted))
    missing = sorted(set(wanted) - set(renamed))
    if spare or missing:
        raise SchemaError(
            f"{_CALLER}: expected the policy's cameras {sorted(wanted)}, got "
            f"{sorted(given)}: without a partner are the policy's {missing} and the "
            f"robot's {spare}. Pair them with rename_map={{'<robot camera>': '<policy "
            "camera>'}, hide one with rename_map={'<robot camera>': None}, or declare "
            "one absent with empty_cameras=['<policy camera>']."
        )
    return renamed


def cameras_of(images: Tensor | TensorDictBase) -> dict[str, Tensor]:
    """Return the images by LeRobot's names."""
    if not is_tensor_collection(images):
        return {"observation.image": images}
    return {_full_name(name): image for name, image in images.items()}


def to_policy_image(
    image: Tensor, name: str, size: tuple[int, ...] | None, batch: torch.Size
) -> Tensor:
    """Return a batch of images as LeRobot feeds them, float in 0..1 ``[N, C, h, w]``.

    Args:
        image: uint8, or float in 0..1, ``[*B, C, h, w]``.
        name: LeRobot's name of the camera, for the error.
        size: what the policy reads; None = any.
        batch: ``*B``.
    """
    _check_batch(image, batch, 3, name)
    if size is not None and tuple(image.shape[-3:]) != tuple(size):
        raise SchemaError(
            f"{_CALLER}: expected images [C, h, w] = {list(size)} from camera "
            f"{name!r}, the size that the policy was trained with, got "
            f"{list(image.shape[-3:])}. Resize in the environment or buffer "
            "(torchrl.envs.Resize), or set the camera to that size."
        )
    check_image_range(image, _CALLER)
    image = image.reshape(batch.numel(), *image.shape[-3:])
    if image.dtype == torch.uint8:
        return image.to(torch.float32) / 255
    return image.to(torch.float32)


def to_policy_state(
    state: Tensor, name: str, size: int | None, batch: torch.Size
) -> Tensor:
    """Return a batch of states as LeRobot feeds them, float32 ``[N, S]``."""
    _check_batch(state, batch, 1, name)
    if size is not None and state.shape[-1] != size:
        raise SchemaError(
            f"{_CALLER}: expected {size} numbers at {name!r}, as the policy was "
            f"trained with, got {state.shape[-1]}. Compare the state's names and units "
            "with those of the training data."
        )
    return state.reshape(batch.numel(), state.shape[-1]).to(torch.float32)


def _check_batch(value: Tensor, batch: torch.Size, dims: int, name: str) -> None:
    if value.ndim != len(batch) + dims or value.shape[:-dims] != batch:
        letters = "S" if dims == 1 else "C, h, w"
        raise SchemaError(
            f"{_CALLER}: expected [*B, {letters}] with *B = {list(batch)} at {name!r}, "
            f"got {list(value.shape)}. *B is the tensordict's batch_size."
        )


def _full_name(name: str) -> str:
    return name if "." in name else f"observation.images.{name}"


def _short_name(name: str) -> str:
    return name.removeprefix("observation.images.")
