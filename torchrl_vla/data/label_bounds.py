"""Labels beyond the bounds of the actions, refused or clamped by choice."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_vla._internal.option_names import Labels as Labels
from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    IS_LABELED_KEY,
    RobotDatasetMetadata,
    SchemaError,
    check_actions,
    describe_place,
)

_Dataset = TypeVar("_Dataset", bound=Demonstrations)

_ROUNDING = 1e-5  # of the range: bounds are float64, actions float32


def check_labels_option(caller: str, labels: Labels) -> None:
    """Raise ``ValueError`` unless there is such a choice."""
    if labels not in get_args(Labels):
        raise ValueError(
            f"{caller}: expected labels to be one of {get_args(Labels)}, got "
            f"{labels!r}."
        )


def bound_labels(
    caller: str, action: Tensor, metadata: RobotDatasetMetadata, labels: Labels
) -> tuple[Tensor, int]:
    """Return the labels of frames within the bounds, and how many were not.

    An expert without a clamp, noise or a Gaussian policy says more than the joints can
    do. The environment executes the clipped action; statistics and token bins of what
    was said would describe other actions than were executed.

    Args:
        caller: opens the error message.
        action: float ``[F, A]``.
        metadata: declares the bounds; without them every finite number is within.
        labels: ``"clamp"`` moves a number to the nearest legal one, ``"refuse"``
            raises.

    Returns:
        float32 ``[F, A]``, and the number of frames that were changed.

    Raises:
        SchemaError: labels are not finite, of another width or, to be refused, out of
            bounds.

    Examples:
        >>> metadata = RobotDatasetMetadata(
        ...     "arm", action_dim=1, action_low=(-1.0,), action_high=(1.0,)
        ... )
        >>> bound_labels("Demo", torch.tensor([[3.0], [0.5]]), metadata, "clamp")
        (tensor([[1.0000],
                [0.5000]]), 1)
    """
    check_actions(caller, ACTION_KEY, action, action.shape[:1], [metadata.action_dim])
    action = action.to(torch.float32)
    bounds = _bounds(metadata)
    if bounds is None:
        return action, 0
    low, high = (bound.to(action) for bound in bounds)
    beyond = beyond_bounds(action, metadata)
    count = int(beyond.any(-1).sum())
    if count and labels == "refuse":
        frame, dim = place = beyond.nonzero()[0].tolist()
        raise SchemaError(
            f"{caller}: expected labels within {low[dim]:g} .. {high[dim]:g} at "
            f"{ACTION_KEY!r}, got {action[frame, dim]:g} at frame {frame}, "
            f"{describe_place(place[1:], has_steps=False)}, and {count} such frames. "
            "Clamp the expert's actions, or pass labels='clamp' (--labels clamp)."
        )
    return action.clamp(low, high), count


def beyond_bounds(action: Tensor, metadata: RobotDatasetMetadata) -> Tensor:
    """Return which numbers lie beyond the declared bounds, bool ``[F, A]``.

    Bounds are float64 and actions float32: rounding, 1e-5 of the range, is within.

    Args:
        action: float ``[F, A]``.
        metadata: declares the bounds; without them every number is within.
    """
    bounds = _bounds(metadata)
    if bounds is None:
        return torch.zeros_like(action, dtype=torch.bool)
    low, high = (bound.to(action) for bound in bounds)
    slack = _ROUNDING * (high - low)
    return (action < low - slack) | (action > high + slack)


def record_labels(
    provenance: Mapping[str, object], labels: Labels, count: int
) -> dict[str, object]:
    """Return a dataset's provenance with what became of labels beyond the bounds.

    Args:
        provenance: of the dataset; keeps its record where ``count`` is 0.
        labels: the choice.
        count: number of frames that had such labels.
    """
    record = {"labels": {"beyond_bounds": labels, "frames": count}} if count else {}
    return {**provenance, **record}


def check_labels(caller: str, dataset: Demonstrations) -> None:
    """Refuse demonstrations with actions beyond the bounds that they declare.

    A robot clips such an action, so a clone would learn what was never executed, and
    the statistics and token bins would be made for it.

    Args:
        caller: opens the error message.
        dataset: the demonstrations; without declared bounds everything passes.

    Raises:
        SchemaError: names the dimensions, with the number of frames.
    """
    refuse_beyond(caller, dataset.frames, dataset.metadata)


def refuse_beyond(
    caller: str, frames: TensorDictBase, metadata: RobotDatasetMetadata
) -> None:
    """Refuse frames with actions beyond the bounds; see :func:`check_labels`.

    Args:
        caller: opens the error message.
        frames: ``[F]``; actions without a label are passed over.
        metadata: declares the bounds; without them everything passes.

    Raises:
        SchemaError: names the dimensions, with the number of frames.
    """
    action = frames.get(ACTION_KEY).as_subclass(Tensor)
    labeled = frames.get(IS_LABELED_KEY, None)
    action = action if labeled is None else action[labeled.reshape(-1)]
    beyond = beyond_bounds(action, metadata)
    if not bool(beyond.any()):
        return
    dims = beyond.any(0).nonzero().flatten().tolist()
    seen = [[action[:, d].min().item(), action[:, d].max().item()] for d in dims]
    raise SchemaError(
        f"{caller}: expected {ACTION_KEY!r} within action_low and action_high of "
        f"{metadata.dataset_id!r}, got {seen} in dimensions {dims}, beyond "
        f"the bounds in {int(beyond.any(-1).sum())} of {len(action)} frames. Clamp "
        "them with clamp_labels(dataset) of torchrl_vla.data (`torchrl-vla train "
        "--clamp-labels`), or correct the bounds in the metadata."
    )


def clamp_labels(dataset: _Dataset) -> _Dataset:
    """Return demonstrations whose actions lie within the bounds that they declare.

    The actions' statistics are computed from what is left, and ``provenance``, where
    the dataset has one, holds the number of frames under ``"labels"``, as after
    :func:`collect`. What is on disk stays as it is.

    Args:
        dataset: the demonstrations; without declared bounds it is returned as it is.

    Examples:
        >>> from torchrl_vla.data import DemonstrationDataset
        >>> from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata
        >>> from tensordict import TensorDict
        >>> frames = TensorDict(action=torch.tensor([[0.5], [3.0]]), batch_size=[2])
        >>> bounded = RobotDatasetMetadata("d", action_low=(-1,), action_high=(1,),
        ...                                action_dim=1)
        >>> dataset = DemonstrationDataset(frames, bounded, InstructionTable([]))
        >>> clamped = clamp_labels(dataset)
        >>> clamped.frames["action"].tolist(), clamped.provenance["labels"]
        ([[0.5], [1.0]], {'beyond_bounds': 'clamp', 'frames': 1})
    """
    bounds = _bounds(dataset.metadata)
    if bounds is None:
        return dataset
    out = copy.copy(dataset)
    action = dataset.frames.get(ACTION_KEY).as_subclass(Tensor)
    legal = action.clamp(*bounds)
    out.frames = dataset.frames.copy().set(ACTION_KEY, legal)
    out.storage = TensorStorage(out.frames)
    statistics = frame_statistics(out.frames)["action_statistics"]
    out.metadata = replace(dataset.metadata, action_statistics=statistics)
    if "provenance" in vars(dataset):
        count = int(beyond_bounds(action, dataset.metadata).any(-1).sum())
        known = vars(dataset)["provenance"]
        vars(out)["provenance"] = record_labels(known, "clamp", count)
    return out


def _bounds(metadata: RobotDatasetMetadata) -> tuple[Tensor, Tensor] | None:
    low, high = metadata.action_low, metadata.action_high
    if low is None or high is None:
        return None
    return torch.tensor(low), torch.tensor(high)
