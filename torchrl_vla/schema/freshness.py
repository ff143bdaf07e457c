"""Refuse images of an earlier step where images of this one are meant."""

from __future__ import annotations

from tensordict import TensorDictBase

from torchrl_vla.errors import SchemaError
from torchrl_vla.schema.keys import IMAGE_IS_STALE_KEY


def check_images_are_fresh(caller: str, tensordict: TensorDictBase) -> None:
    """Refuse frames whose images an environment did not draw.

    An environment that draws on demand repeats the last image between two
    decisions. To a dataset such a frame is a lie: the robot has moved and the image
    has not. For components that store or train on every frame they are given.

    **Reads** ``image_is_stale`` bool ``[*B, 1]``; without it every image is fresh.

    Args:
        caller: the component that asks; opens the error message.
        tensordict: the frames.

    Raises:
        SchemaError: an image is stale.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> frames = TensorDict(image_is_stale=torch.tensor([[False], [True]]))
        >>> check_images_are_fresh("collect", frames)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: collect: expected images of the step \
they stand at, got 'image_is_stale' True in 1 of 2 frames. Make the environment with \
render_on_demand=False to record or train on every frame, or keep the decisions only.
    """
    is_stale = tensordict.get(IMAGE_IS_STALE_KEY, None)
    if is_stale is None or not bool(is_stale.any()):
        return
    raise SchemaError(
        f"{caller}: expected images of the step they stand at, got "
        f"{IMAGE_IS_STALE_KEY!r} True in {int(is_stale.sum())} of {is_stale.numel()} "
        "frames. Make the environment with render_on_demand=False to record or train "
        "on every frame, or keep the decisions only."
    )
