"""Demonstrations in the conventions of another robot's metadata."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

from torchrl.data import TensorStorage

from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import STATE_KEY, RobotDatasetMetadata
from torchrl_vla.transforms import RobotConversion

_Dataset = TypeVar("_Dataset", bound=Demonstrations)


def frame_conversion(
    caller: str, source: RobotDatasetMetadata, target: RobotDatasetMetadata
) -> RobotConversion:
    """Return the conversion of single frames between two records.

    Args:
        caller: opens the error message.
        source: of the frames.
        target: of the frames that are wanted.

    Raises:
        IncompatibleMetadataError: lists the differences that have no conversion.
        SettingsError: actions become relative or are resampled, which takes chunks.
    """
    conversion = RobotConversion(source, target)
    if conversion.needs_chunks:
        raise SettingsError(
            f"{caller}: expected a conversion frame by frame, got one "
            f"of whole chunks: {conversion.changes}. Append the transform "
            "metadata.conversion_to(target) to the buffer behind an "
            "ActionChunkTransform."
        )
    return conversion


def convert_demonstrations(dataset: _Dataset, target: RobotDatasetMetadata) -> _Dataset:
    """Return demonstrations in the conventions of ``target``; the disk stays as it is.

    Statistics are computed from what is converted. ``provenance``, where the dataset
    has one, holds under ``"converted"`` each declaration that has changed.

    Args:
        dataset: the demonstrations; without a difference they are returned as they are.
        target: e.g. of another dataset, or of a checkpoint.

    Raises:
        IncompatibleMetadataError: lists the differences that have no conversion.
        SettingsError: actions become relative or are resampled, which takes chunks; or
            the observations are read from datasets of their own.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.data import DemonstrationDataset
        >>> from torchrl_vla.schema import InstructionTable
        >>> centimetres, metres = (
        ...     RobotDatasetMetadata("arm", action_dim=1, action_units=unit)
        ...     for unit in ("cm", "m")
        ... )
        >>> frames = TensorDict(action=torch.tensor([[50.0]]), batch_size=[1])
        >>> dataset = DemonstrationDataset(frames, centimetres, InstructionTable([]))
        >>> converted = convert_demonstrations(dataset, metres)
        >>> converted.frames["action"].item(), converted.provenance["converted"]
        (0.5, ["action_units: ('cm',) becomes ('m',)"])
    """
    conversion = frame_conversion("convert_demonstrations", dataset.metadata, target)
    if not conversion.changes:
        return dataset
    out = copy.copy(dataset)
    out.frames = conversion(dataset.frames)
    out.storage = TensorStorage(out.frames)
    out.metadata = replace(conversion.metadata, **frame_statistics(out.frames))
    complete = out.observations()
    state = out.frames[:1].get(STATE_KEY, None)
    if complete is not None and state is not None:
        seen = complete(out.frames[:1]).get(STATE_KEY)
        if not bool((seen == state).all()):
            raise SettingsError(
                f"convert_demonstrations: expected states from the frames of "
                f"{type(dataset).__name__}, got those of its parts. Convert the "
                "datasets before they are aggregated."
            )
    if "provenance" in vars(dataset):
        known = vars(dataset)["provenance"]
        vars(out)["provenance"] = {**known, "converted": conversion.changes}
    return out
