"""Reference batch that a fingerprint is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.errors import SchemaError
from torchrl_vla.schema import IMAGE_KEY, OBSERVATION_KEY


def reference_rows(count: int, batch_size: int) -> Tensor:
    """Return the rows ``0, 1, ...`` of a reference batch, again from 0 at the end.

    Args:
        count: rows of the dataset.
        batch_size: rows of the batch.

    Raises:
        SchemaError: the dataset is empty.

    Examples:
        >>> reference_rows(3, 5)
        tensor([0, 1, 2, 0, 1])
    """
    if count < 1:
        raise SchemaError(
            "reference_rows: expected at least one frame for a reference batch, got "
            "an empty dataset. Profile with data, or with profile_mode='timing', which "
            "makes no fingerprint."
        )
    return torch.arange(batch_size) % count


def float_images(
    batch: TensorDictBase, cameras: Sequence[NestedKey] | None = None
) -> TensorDictBase:
    """Return a batch whose uint8 images are float in ``[0, 1]``.

    Some policies resize with an interpolation that byte tensors do not have on an
    accelerator, so fingerprints are made of floats everywhere.

    Args:
        batch: not changed.
        cameras: keys of the images; None = ``("observation", "image")``, whether it is
            one image or one per camera.

    Raises:
        SchemaError: the batch has no image at a key that was given.
    """
    if cameras is None:
        found = [
            key
            for key in batch.keys(True, True)
            if key[:2] == IMAGE_KEY or key == IMAGE_KEY
        ]
    else:
        found = list(cameras)
        present = set(batch.keys(True, True))
        missing = [key for key in found if key not in present]
        if missing:
            raise SchemaError(
                f"float_images: expected images at {missing}, got only "
                f"{sorted(map(str, batch.keys(True, True)))}. Pass the cameras of the "
                "batch, or None to take all below "
                f"{OBSERVATION_KEY!r}."
            )
    out = batch.copy()
    for key in found:
        image = out.get(key)
        if image.dtype == torch.uint8:
            out.set(key, image.float() / 255)
    return out
