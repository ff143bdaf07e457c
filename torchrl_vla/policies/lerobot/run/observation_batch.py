"""Conversion of a tensordict's observations to LeRobot's batch dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor

from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    ObservationKeys,
    SchemaError,
    UnknownInstructionError,
    check_ids,
    instruction_texts,
    is_text,
)

_CALLER = "LeRobotPolicyWrapper"
_ONE_IMAGE = "observation.image"


@dataclass
class ObservationReader:
    """Read a policy's inputs from a tensordict; name the one that is missing.

    Args:
        keys: image, state and instruction.
        hint: what to do when an input is missing.
        environment_state_key: simulator state; None = not read.
        instructions: table that gives instruction ids their texts.
    """

    keys: ObservationKeys
    hint: str
    environment_state_key: NestedKey | None = None
    instructions: InstructionTable | None = None

    def read(self, tensordict: TensorDictBase, key: NestedKey) -> Any:
        """Return an entry.

        Raises:
            MissingKeyError: it is not there.
        """
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"{_CALLER}: expected an input at {key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. {self.hint}"
            )
        return value

    def texts(self, tensordict: TensorDictBase) -> list[str]:
        """Return one instruction per batch element.

        Raises:
            UnknownInstructionError: ids come without a table, or are not in it.
            SchemaError: their number is not that of the batch elements.
        """
        key = self.keys.instruction
        value = self.read(tensordict, key)
        if not is_text(value):
            check_ids(_CALLER, value, key, tensordict.batch_size)
            if self.instructions is None:
                raise UnknownInstructionError(
                    f"{_CALLER}: expected a table for the instruction ids at {key!r}, "
                    "got none. Pass instructions=env.instructions (or the dataset's)."
                )
            value = self.instructions.decode(value.flatten())
        texts = instruction_texts(value)
        if len(texts) != tensordict.batch_size.numel():
            raise SchemaError(
                f"{_CALLER}: expected one instruction per batch element at {key!r}, "
                f"got {len(texts)} for a batch {list(tensordict.batch_size)}."
            )
        return texts

    def images(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Return the images by LeRobot's names; none where they are not read."""
        if self.keys.image is None:
            return {}
        images = self.read(tensordict, self.keys.image)
        if not is_tensor_collection(images):
            return {_ONE_IMAGE: images}
        return {full_camera_name(name): image for name, image in images.items()}

    def states(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Return the states that are read by LeRobot's names."""
        keys = {
            "observation.state": self.keys.state,
            "observation.environment_state": self.environment_state_key,
        }
        return {
            name: self.read(tensordict, key)
            for name, key in keys.items()
            if key is not None
        }

    def device_of(self, tensordict: TensorDictBase) -> torch.device | None:
        """Return the device of the inputs; None without any."""
        inputs = self.states(tensordict) or self.images(tensordict)
        return next((value.device for value in inputs.values()), None)


def match_cameras(
    given: list[str],
    wanted: list[str],
    rename_map: Mapping[str, str | None],
) -> dict[str, str]:
    """Pair the robot's cameras with those that the policy reads.

    One image without a camera's name fits a policy of one camera.

    Args:
        given: LeRobot's names of the cameras in the tensordict.
        wanted: LeRobot's names of the policy's cameras.
        rename_map: from given to wanted names, with or without
            ``"observation.images."``; None = hidden from the policy.

    Returns:
        From wanted to given names.

    Raises:
        SchemaError: a camera on either side has no partner; lists both sides.
    """
    renamed: dict[str, str] = {}
    absent = [name for name in rename_map if full_camera_name(name) not in given]
    if absent:
        raise SchemaError(
            f"{_CALLER}: expected cameras of the robot in rename_map, got {absent}. It "
            f"has {sorted(given)}."
        )
    for name in given:
        target = rename_map.get(name, rename_map.get(_short_camera_name(name), name))
        if target is None:
            continue
        target = full_camera_name(target)
        if target in renamed:
            raise SchemaError(
                f"{_CALLER}: expected one camera for the policy's {target!r}, got "
                f"{renamed[target]!r} and {name!r}. Hide one with rename_map="
                "{'<robot camera>': None}."
            )
        renamed[target] = name
    if len(renamed) == len(wanted) == 1 and _ONE_IMAGE in (*renamed, *wanted):
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


def to_policy_image(
    image: Tensor, name: str, size: tuple[int, ...] | None, batch: torch.Size
) -> Tensor:
    """Return a batch of images as LeRobot reads them, float in 0..1 ``[N, C, h, w]``.

    Args:
        image: uint8, or float in 0..1, ``[*B, C, h, w]``.
        name: LeRobot's name of the camera, for the error.
        size: ``(C, h, w)`` that the policy reads; None = any.
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
    """Return a batch of states as LeRobot reads them, float32 ``[N, S]``."""
    _check_batch(state, batch, 1, name)
    if size is not None and state.shape[-1] != size:
        raise SchemaError(
            f"{_CALLER}: expected {size} numbers at {name!r}, as the policy was "
            f"trained with, got {state.shape[-1]}. Compare the state's names and units "
            "with those of the training data."
        )
    state = state.reshape(batch.numel(), state.shape[-1]).to(torch.float32)
    if not state.isfinite().all():
        row, dim = (~state.isfinite()).nonzero()[0].tolist()
        raise SchemaError(
            f"{_CALLER}: expected finite numbers at {name!r}, got "
            f"{state[row, dim].item()} in row {row}, dimension {dim}. Look at the "
            "sensor, or at the frame of the data."
        )
    return state


def full_camera_name(name: str) -> str:
    """Return LeRobot's name of a camera."""
    return name if "." in name else f"observation.images.{name}"


def _short_camera_name(name: str) -> str:
    return name.removeprefix("observation.images.")


def _check_batch(value: Tensor, batch: torch.Size, dims: int, name: str) -> None:
    if value.ndim != len(batch) + dims or value.shape[:-dims] != batch:
        letters = "S" if dims == 1 else "C, h, w"
        raise SchemaError(
            f"{_CALLER}: expected [*B, {letters}] with *B = {list(batch)} at {name!r}, "
            f"got {list(value.shape)}. *B is the tensordict's batch_size."
        )
