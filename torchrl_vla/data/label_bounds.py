"""Labels beyond the bounds of the actions, refused or clamped by choice."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from torchrl_vla._internal.option_names import Labels as Labels
from torchrl_vla.schema import (
    ACTION_KEY,
    RobotDatasetMetadata,
    SchemaError,
    check_actions,
    describe_place,
)


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
    if metadata.action_low is None or metadata.action_high is None:
        return action, 0
    low, high = (
        torch.tensor(bound, dtype=torch.float32, device=action.device)
        for bound in (metadata.action_low, metadata.action_high)
    )
    beyond = (action < low) | (action > high)
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
