"""Observations of a robot: what its metadata declare, and its position."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_vla.schema.keys import IMAGE_KEY, OBSERVED_AT_KEY, STATE_KEY
from torchrl_vla.schema.metadata import RobotDatasetMetadata

#: Fields of the metadata that a robot has to declare before it moves.
ROBOT_FIELDS = (
    *("action_names", "action_units", "action_low", "action_high"),
    *("control_frequency_hz", "state_dim"),
)


def declared_observations(
    metadata: RobotDatasetMetadata,
) -> dict[NestedKey, tuple[torch.dtype, tuple[int, ...]]]:
    """Return key, dtype and shape of each tensor that a robot observes.

    Examples:
        >>> arm = RobotDatasetMetadata(
        ...     "arm", state_dim=2, cameras=("wrist",), image_sizes=((3, 8, 8),)
        ... )
        >>> for key, (dtype, shape) in declared_observations(arm).items():
        ...     print(key, dtype, shape)
        ('observation', 'state') torch.float32 (2,)
        observed_at_s torch.float64 (1,)
        ('observation', 'image', 'wrist') torch.uint8 (3, 8, 8)
    """
    found: dict[NestedKey, tuple[torch.dtype, tuple[int, ...]]] = {
        STATE_KEY: (torch.float32, (int(metadata.state_dim or 0),)),
        OBSERVED_AT_KEY: (torch.float64, (1,)),
    }
    image = ("observation", "image")
    for index, size in enumerate(metadata.image_sizes or ()):
        key = (*image, metadata.cameras[index]) if metadata.cameras else IMAGE_KEY
        found[key] = (torch.uint8, size)
    return found


def position_of(metadata: RobotDatasetMetadata, state: Tensor) -> Tensor | None:
    """Return the action that commands the position where a robot is, float ``[A]``.

    Args:
        metadata: of the robot.
        state: float ``[S]``.

    Returns:
        None where the metadata do not say it: a dimension of the action is no number of
        the state under the same name and unit, or is not absolute. One unit that is not
        declared is another one.

    Examples:
        >>> arm = RobotDatasetMetadata(
        ...     "arm", action_names=("a", "b"), state_names=("speed", "b", "a")
        ... )
        >>> position_of(arm, torch.tensor([9.0, 2.0, 1.0]))
        tensor([1., 2.])
    """
    names, known = metadata.action_names, metadata.state_names
    if names is None or known is None or not set(names) <= set(known):
        return None
    if set(metadata.action_reference or ()) - {"absolute"}:
        return None
    places = [known.index(name) for name in names]
    units = metadata.state_units
    measured = None if units is None else tuple(units[place] for place in places)
    return state[..., places] if measured == metadata.action_units else None
