"""Base class of transforms that give every image another size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from tensordict import (
    NestedKey,
    TensorDictBase,
    is_tensor_collection,
    unravel_key,
)
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs import Transform

from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms.placement import convert_next


class ImageConversion(Transform, ABC):
    """Convert each camera's image, in data and in an environment alike (abstract).

    The inverse does nothing: an image goes only one way. Images under ``next`` are
    converted with those beside it.

    Args:
        size: height and width afterwards.
        in_keys: one image, or a sub-tensordict of cameras, each.

    Raises:
        MissingKeyError: there is no image at a key.
        SchemaError: it is no image, uint8 or float ``[*B, C, h, w]``.
    """

    def __init__(self, size: tuple[int, int], in_keys: Sequence[NestedKey]) -> None:
        keys = list(map(unravel_key, in_keys))
        super().__init__(in_keys=keys, out_keys=keys)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"{type(self).__name__}: expected a height and a width of at least 1, "
                f"got {size}."
            )
        self.size = tuple(size)

    @abstractmethod
    def convert_image(self, image: Tensor) -> Tensor:
        """Return an image ``[..., C, h, w]`` in its new size."""

    def _check(self, image: Tensor) -> None:
        known = image.dtype == torch.uint8 or image.is_floating_point()
        if not known or image.ndim < 3 or 0 in image.shape[-3:]:
            raise SchemaError(
                f"{type(self).__name__}: expected uint8 or float images [*B, C, h, w], "
                f"got {tuple(image.shape)} of {image.dtype}."
            )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Convert the images of sampled data, now and next."""
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        return convert_next(self._call(tensordict), self.in_keys, self._each)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            value = next_tensordict.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"{type(self).__name__}: expected an image at {key!r}, got only "
                    f"{sorted(map(str, next_tensordict.keys(True, True)))}."
                )
            next_tensordict.set(key, self._each(value))
        return next_tensordict

    def _each(self, value: Tensor | TensorDictBase) -> Tensor | TensorDictBase:
        if is_tensor_collection(value):
            return cast(TensorDictBase, value).apply(self.convert_image)
        return self.convert_image(value)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Describe the images in their new size."""
        observation_spec = observation_spec.clone()
        for key in self.in_keys:
            leaf = observation_spec[key]
            names = leaf.keys(True, True) if isinstance(leaf, Composite) else [()]
            for name in names:
                path = unravel_key((key, name)) if name else key
                observation_spec[path] = self._converted_leaf(observation_spec[path])
        return observation_spec

    def _converted_leaf(self, leaf: TensorSpec) -> TensorSpec:
        # Bounds of an image are those of its dtype.
        empty = torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device)
        image = self.convert_image(empty)
        return Unbounded(image.shape, dtype=image.dtype, device=leaf.device)
