"""Demonstrations with the features of a frozen image encoder beside their images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import torch
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.data import TensorStorage
from torchrl.envs import Transform

from torchrl_vla._internal.durable_files import write_json, writing_folder
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.data import Demonstrations
from torchrl_vla.data.demonstrations import check_demonstrations
from torchrl_vla.data.mapped_frames import map_frames
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import hash_weights
from torchrl_vla.policies import ImageEncoder, image_features_key
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    MissingKeyError,
    SchemaError,
)

_FEATURES, _ORIGIN = "features", "origin.json"
_CALLER = "encode_images"


class EncodedDemonstrations(Demonstrations):
    """Demonstrations whose frames hold the features of their images.

    Args:
        dataset: the demonstrations.
        features: of its frames, ``[F, rows, columns, channels]``, or a tensordict of
            them by camera.
    """

    def __init__(
        self, dataset: Demonstrations, features: Tensor | TensorDictBase
    ) -> None:
        self.dataset, self.metadata = dataset, dataset.metadata
        self.instructions = dataset.instructions
        self.frames = dataset.frames.copy().set(image_features_key(IMAGE_KEY), features)
        self.storage = TensorStorage(self.frames)

    def observations(self, history_size: int = 1) -> Transform | None:
        """Make the transform that completes the observations of sampled frames."""
        return self.dataset.observations(history_size)

    def select_episodes(self, episodes: Tensor) -> EncodedDemonstrations:
        """Return some episodes, with their features."""
        keep = torch.isin(self.frames.get(EPISODE_KEY), episodes)
        features = self.frames.get(image_features_key(IMAGE_KEY))[keep]
        return EncodedDemonstrations(self.dataset.select_episodes(episodes), features)


def encode_images(
    dataset: Demonstrations,
    encoder: ImageEncoder,
    folder: Path | str,
    *,
    batch_size: int = 64,
) -> EncodedDemonstrations:
    """Encode the images of a dataset once, and keep the features in a folder.

    A policy with the same encoder trains on the features and not on the images; its
    weights are those of a training on images, since every image is encoded alike. The
    folder belongs to the encoder's weights, its preparation of images and the frames.

    **Writes** ``("observation", "image_features")`` float32 ``[F, rows, columns,
    channels]``, or a sub-tensordict by camera.

    Args:
        dataset: the demonstrations.
        encoder: a frozen one, in evaluation mode.
        folder: is written, or read if it is already there.

    Keyword Args:
        batch_size: images that go through the encoder together.

    Raises:
        SettingsError: the encoder is trained: its features would become stale.
        MissingKeyError: the dataset has no images.
        SchemaError: the folder holds features of another encoder or dataset.
    """
    check_demonstrations(_CALLER, dataset)
    if not encoder.frozen:
        raise SettingsError(
            f"{_CALLER}: expected a frozen encoder, got a {type(encoder).__name__} "
            "with frozen=False. Its features change in training: train on the images, "
            "or build it with frozen=True."
        )
    folder = Path(folder)
    origin = _origin(dataset, encoder)
    remedy = "Delete the folder, or name another one: the features are computed again."
    if not (folder / _ORIGIN).is_file():
        _write(dataset, encoder, folder, origin, batch_size)
    found = read_json(_CALLER, folder / _ORIGIN, dict[str, str], remedy=remedy)
    stale = sorted(key for key in origin if found.get(key) != origin[key])
    if stale:
        raise SchemaError(
            f"{_CALLER}: expected features of this encoder and dataset in "
            f"{str(folder)!r}, got some with another {', '.join(stale)}. {remedy}"
        )
    features = map_frames(_CALLER, folder / _FEATURES, remedy)
    inside = features.get("image")
    return EncodedDemonstrations(dataset, cast("Tensor | TensorDictBase", inside))


def _origin(dataset: Demonstrations, encoder: ImageEncoder) -> dict[str, str]:
    """Return what the features depend on, by name."""
    frames = hashlib.sha256()
    for key in (EPISODE_KEY, FRAME_KEY, ACTION_KEY):
        values = dataset.frames.get(key).contiguous().view(torch.uint8)
        frames.update(values.reshape(-1).numpy().data)
    return {
        "encoder and preparation": encoder.describe(),
        "weights": hash_weights(encoder),
        "frames": frames.hexdigest(),
    }


def _write(
    dataset: Demonstrations,
    encoder: ImageEncoder,
    folder: Path,
    origin: dict[str, str],
    batch_size: int,
) -> None:
    buffer, count = dataset.replay_buffer(1), len(dataset)
    with writing_folder(folder, _ORIGIN) as partial:
        stored = None
        for start in range(0, count, batch_size):
            part = buffer[start : start + batch_size]
            batch = TensorDict({"image": _encode(part, encoder)}, part.batch_size)
            if stored is None:
                stored = batch[0].expand(count).memmap_like(str(partial / _FEATURES))
            stored[start : start + batch_size] = batch
        write_json(partial / _ORIGIN, origin)


def _encode(part: TensorDictBase, encoder: ImageEncoder) -> Tensor | TensorDict:
    images = part.get(IMAGE_KEY, None)
    if images is None:
        raise MissingKeyError(
            f"{_CALLER}: expected images at {IMAGE_KEY!r}, got "
            f"{sorted(map(str, part.keys(True, True)))}. A dataset without images "
            "needs no image encoder."
        )
    if not is_tensor_collection(images):
        return _as_map(encoder, images)
    maps = {name: _as_map(encoder, images[name]) for name in sorted(images.keys())}
    return TensorDict(maps, part.batch_size)


def _as_map(encoder: ImageEncoder, images: Tensor) -> Tensor:
    features = encoder.encode(images)
    return features.patches.float().unflatten(1, features.grid)
