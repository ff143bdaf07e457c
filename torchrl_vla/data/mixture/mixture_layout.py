"""Common sizes of the rows of a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor

from torchrl_vla.data.mixture.embodiment import image_leaves
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    STATE_KEY,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)


@dataclass(frozen=True)
class MixtureSizes:
    """Requested sizes of a mixture's rows; None = computed from the datasets.

    Args:
        action_dim: ``A``; None = the largest of the datasets.
        state_dim: ``S``; None = the largest of the datasets.
        image_size: ``(h, w)`` to resize all images to, at each read. None = the images
            of a camera must have one size.
    """

    action_dim: int | None = None
    state_dim: int | None = None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class MixtureLayout:
    """Sizes of a mixture's rows and of each dataset in it.

    Args:
        action_dim: ``A``.
        state_dim: ``S``; 0 = no dataset has a state.
        image_shapes: ``(C, h, w)`` of each image key of the rows.
        action_dims: of each dataset.
        state_dims: of each dataset; 0 = it has no state.
    """

    action_dim: int
    state_dim: int
    image_shapes: dict[NestedKey, torch.Size]
    action_dims: list[int]
    state_dims: list[int]

    def declare(
        self, index: int, metadata: RobotDatasetMetadata
    ) -> RobotDatasetMetadata:
        """Return a dataset's metadata with the sizes of its frames.

        Raises:
            MetadataError: the metadata declare other sizes.
        """
        action_dim, state_dim = self.action_dims[index], self.state_dims[index] or None
        for name, declared, size in (
            ("action_dim", metadata.action_dim, action_dim),
            ("state_dim", metadata.state_dim, state_dim),
        ):
            if declared not in (None, size):
                raise MetadataError(
                    f"MixtureReplay: expected {name}={declared} in the frames of "
                    f"{metadata.dataset_id!r}, as its metadata declare, got {size}."
                )
        return replace(metadata, action_dim=action_dim, state_dim=state_dim)


def common_layout(
    names: Sequence[str],
    firsts: Sequence[TensorDictBase],
    cameras: Sequence[Mapping[str, NestedKey | None]] | None,
    sizes: MixtureSizes,
) -> MixtureLayout:
    """Return the common sizes, read from one frame of each dataset."""
    for name, first in zip(names, firsts, strict=True):
        if first.get(ACTION_KEY, None) is None:
            raise MissingKeyError(
                f"MixtureReplay: expected {ACTION_KEY!r} in the frames of {name!r}, "
                f"got only {sorted(map(str, first.keys(True, True)))}."
            )
    states = [first.get(STATE_KEY, None) for first in firsts]
    action_dims = [first.get(ACTION_KEY).shape[-1] for first in firsts]
    state_dims = [0 if state is None else state.shape[-1] for state in states]
    images = [image_leaves(first) for first in firsts]
    if cameras is None:
        renamed = _same_images(names, images)
    else:
        renamed = _named_images(names, images, cameras)
    return MixtureLayout(
        action_dim=_common_size("action_dim", sizes.action_dim, names, action_dims),
        state_dim=_common_size("state_dim", sizes.state_dim, names, state_dims),
        image_shapes=_image_shapes(names, renamed, sizes.image_size),
        action_dims=action_dims,
        state_dims=state_dims,
    )


def _common_size(
    what: str, size: int | None, names: Sequence[str], dims: list[int]
) -> int:
    if size is not None and size < max(dims):
        raise ValueError(
            f"MixtureReplay: expected {what} >= {max(dims)}, the largest of "
            f"{dict(zip(names, dims, strict=True))}, got {size}."
        )
    return max(dims) if size is None else size


def _same_images(
    names: Sequence[str], images: list[dict[NestedKey, Tensor]]
) -> list[dict[NestedKey, Tensor | None]]:
    found = {
        name: sorted(map(str, leaves))
        for name, leaves in zip(names, images, strict=True)
    }
    if any(set(leaves) != set(images[0]) for leaves in images):
        raise SchemaError(
            f"MixtureReplay: expected the same images in all datasets, got {found}. "
            "Map camera names to images with cameras=[{name: key or None}, ...], one "
            "mapping for each dataset."
        )
    return [dict(leaves) for leaves in images]


def _named_images(
    names: Sequence[str],
    images: list[dict[NestedKey, Tensor]],
    cameras: Sequence[Mapping[str, NestedKey | None]],
) -> list[dict[NestedKey, Tensor | None]]:
    if len(cameras) != len(names):
        raise ValueError(
            f"MixtureReplay: expected one mapping of cameras for each of {len(names)} "
            f"datasets, got {len(cameras)}."
        )
    if any(set(mapping) != set(cameras[0]) for mapping in cameras):
        found = {n: sorted(mapping) for n, mapping in zip(names, cameras, strict=True)}
        raise SchemaError(
            "MixtureReplay: expected the same camera names for all datasets, got "
            f"{found}. Map a camera that a dataset lacks to None."
        )
    renamed = []
    for name, leaves, mapping in zip(names, images, cameras, strict=True):
        keys = {camera: key and unravel_key(key) for camera, key in mapping.items()}
        missing = {c: k for c, k in keys.items() if k is not None and k not in leaves}
        if missing:
            raise MissingKeyError(
                f"MixtureReplay: expected images of {name!r} at {missing}, got only "
                f"{sorted(map(str, leaves))}. Map a camera that it lacks to None."
            )
        renamed.append(
            {(*IMAGE_KEY, c): leaves[k] if k else None for c, k in keys.items()}
        )
    return renamed


def _image_shapes(
    names: Sequence[str],
    images: list[dict[NestedKey, Tensor | None]],
    image_size: tuple[int, int] | None,
) -> dict[NestedKey, torch.Size]:
    shapes = {}
    for key in images[0]:
        found = {
            name: image.shape[-3:]
            for name, leaves in zip(names, images, strict=True)
            if (image := leaves[key]) is not None
        }
        if not found:
            raise SchemaError(
                f"MixtureReplay: expected at least one dataset with {key!r}, got None "
                "from all. Leave it out of cameras=."
            )
        if image_size is not None:
            found = {n: torch.Size((s[0], *image_size)) for n, s in found.items()}
        if len(set(found.values())) > 1:
            listed = {name: list(shape) for name, shape in found.items()}
            raise SchemaError(
                f"MixtureReplay: expected images of one shape [C, h, w] at {key!r}, "
                f"got {listed}. Pass MixtureSizes(image_size=(h, w)) to resize them; "
                "the numbers of channels must agree."
            )
        shapes[key] = next(iter(found.values()))
    return shapes
