"""Rendering of a simulator apart from its steps, and on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    IMAGE_CHANNELS,
    IMAGE_KEY,
    OBSERVATION_NEEDED_KEY,
    SchemaError,
)

Key = str | tuple[str, ...]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class RenderSpec:
    """Render a simulator apart from its steps.

    A simulator that renders inside its step renders images that no policy reads. One
    with a ``RenderSpec`` steps its physics alone and is rendered where it is needed.

    Args:
        render: returns the image of a gymnasium environment as it is now, uint8
            ``[h, w, C]``, or ``{camera: image}``. It must not move the simulation.
        shape: ``(h, w, C)`` of the image, or ``{camera: (h, w, C)}``.

    Examples:
        >>> rendering = RenderSpec(lambda env: env.render(), (500, 500, 3))
        >>> rendering.layout
        {('observation', 'image'): (3, 500, 500)}
    """

    render: Callable[[Any], object]
    shape: Shape | Mapping[str, Shape]

    @property
    def layout(self) -> dict[Key, Shape]:
        """The keys of the images in the schema, and their shapes ``(C, h, w)``."""
        if isinstance(self.shape, Mapping):
            shapes = {(*IMAGE_KEY, name): shape for name, shape in self.shape.items()}
        else:
            shapes = {IMAGE_KEY: self.shape}
        return {key: (c, h, w) for key, (h, w, c) in shapes.items()}

    def __call__(
        self,
        envs: Sequence[gymnasium.Env],
        into: Mapping[Key, np.ndarray] | None = None,
        rows: Sequence[int] | None = None,
    ) -> dict[Key, np.ndarray]:
        """Render ``n`` environments; return an array ``[n, C, h, w]`` per image.

        Args:
            envs: the environments.
            into: arrays that receive the images instead of new ones.
            rows: of ``into``, one per environment; None = the first ``n``.

        Raises:
            SchemaError: an image has another shape than ``shape``.
        """
        layout = self.layout
        out = dict(into) if into is not None else empty_rows(len(envs), layout)
        for row, env in zip(rows or range(len(envs)), envs, strict=True):
            view = to_images(self.render(env))
            got = {key: image.shape for key, image in view.items()}
            if got != layout:
                raise SchemaError(
                    f"RenderSpec: expected images (C, h, w) {layout}, as 'shape' says, "
                    f"got {got}. Correct the shape."
                )
            for key, image in view.items():
                out[key][row] = image
        return out


def empty_rows(
    count: int, layout: Mapping[Key, tuple[int, ...]]
) -> dict[Key, np.ndarray]:
    """Return an array ``[count, ...]`` per entry: uint8 images, float32 vectors."""
    return {
        key: np.empty((count, *shape), np.uint8 if len(shape) == 3 else np.float32)
        for key, shape in layout.items()
    }


def to_images(images: object) -> dict[Key, np.ndarray]:
    """Return an image ``[h, w, C]``, or several by camera, as the schema has them.

    They are views ``[C, h, w]`` of the images that were given.

    Raises:
        SchemaError: an image is not uint8 ``[h, w, C]`` with 1, 3 or 4 channels.
    """
    if isinstance(images, Mapping):
        return {(*IMAGE_KEY, name): _to_chw(x, name) for name, x in images.items()}
    return {IMAGE_KEY: _to_chw(images, "image")}


def _to_chw(value: object, name: str) -> np.ndarray:
    image = np.asarray(value)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise SchemaError(
            f"GymnasiumEnv: expected a uint8 image [h, w, C] at {name!r}, got "
            f"{image.dtype} of shape {image.shape}. Convert it in observe or render."
        )
    if image.shape[2] not in IMAGE_CHANNELS:
        raise SchemaError(
            f"GymnasiumEnv: expected an image [h, w, C] with C of {IMAGE_CHANNELS} at "
            f"{name!r}, got shape {image.shape}. Where the channels come first, call "
            "np.moveaxis(image, 0, -1) in observe or render, or say so: "
            "SimulatorKeys(..., channels_first=True)."
        )
    return image.transpose(2, 0, 1)


def observation_is_needed(tensordict: TensorDictBase, batch_size: torch.Size) -> Tensor:
    """Return the environments whose next observation a policy may read, bool ``[*B]``.

    All of them, unless an executor wrote otherwise.

    **Reads** ``observation_needed`` bool ``[*B, 1]``, if it is there.

    Raises:
        SchemaError: it is not bool, or not one per environment.
    """
    observation_needed = tensordict.get(OBSERVATION_NEEDED_KEY, None)
    if observation_needed is None:
        return torch.ones(batch_size, dtype=torch.bool, device=tensordict.device)
    if (
        observation_needed.dtype != torch.bool
        or observation_needed.numel() != batch_size.numel()
    ):
        raise SchemaError(
            f"Environment: expected bool {[*batch_size, 1]} at "
            f"{OBSERVATION_NEEDED_KEY!r}, got {observation_needed.dtype} "
            f"{list(observation_needed.shape)}. No environment was stepped. "
            "True = the policy reads the observation of this step."
        )
    return observation_needed.reshape(batch_size)
