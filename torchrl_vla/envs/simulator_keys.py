"""Record of a simulator's observation entries by their meaning in the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrl_vla.schema import MissingKeyError


@dataclass(frozen=True)
class SimulatorKeys:
    """Declare which entries of a dict observation are state, images and instruction.

    Args:
        state: entries that are flattened and joined, in this order.
        images: entry of the one image, or ``{camera: entry}``.
        instruction: entry with the instruction's text; None = there is none.
        environment_state: entries of privileged state, flattened and joined likewise.
        channels_first: True = the images are ``[C, h, w]``, not ``[h, w, C]``.

    Raises:
        MissingKeyError: an observation lacks a declared entry; names what it has.

    Examples:
        >>> keys = SimulatorKeys(state=("position", "gripper"))
        >>> keys({"position": [1.0, 2.0], "gripper": [0.5], "goal": [9.0]})
        {'state': array([1. , 2. , 0.5])}
    """

    state: tuple[str, ...] = ()
    images: str | Mapping[str, str] | None = None
    instruction: str | None = None
    environment_state: tuple[str, ...] = ()
    channels_first: bool = False

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the declared entries under the names of the schema."""
        out: dict[str, Any] = {}
        if self.instruction is not None:
            out["instruction"] = self._get(observation, self.instruction)
        vectors = {"state": self.state, "environment_state": self.environment_state}
        for vector, names in vectors.items():
            if names:
                parts = [np.ravel(self._get(observation, name)) for name in names]
                out[vector] = np.concatenate(parts)
        if isinstance(self.images, str):
            out["image"] = self._image(observation, self.images)
        elif self.images is not None:
            out["image"] = {
                camera: self._image(observation, name)
                for camera, name in self.images.items()
            }
        return out

    def _image(self, observation: Mapping[str, Any], name: str) -> Any:
        image = self._get(observation, name)
        return np.moveaxis(image, 0, -1) if self.channels_first else image

    @staticmethod
    def _get(observation: Mapping[str, Any], name: str) -> Any:
        available = sorted(observation) if isinstance(observation, Mapping) else None
        if available is None or name not in available:
            raise MissingKeyError(
                f"SimulatorKeys: expected the entry {name!r} in the observation, got "
                f"{type(observation).__name__} with {available}. Declare one of these, "
                "or map the observation with a function."
            )
        return observation[name]
