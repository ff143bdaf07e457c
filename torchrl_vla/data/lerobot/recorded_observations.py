"""What the robot saw: images, decoded when they are sampled, and history."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.data.lerobot.image_reader import ImageReader
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    HISTORY_IS_PAD_KEY,
    HISTORY_KEY,
    OBSERVATION_KEY,
    MissingKeyError,
    check_positive_int,
)
from torchrl_vla.transforms.gather.episode_index import EpisodeIndex


class RecordedObservations(Transform):
    """Add the cameras' images to sampled frames, and the observations before them.

    The frames of a LeRobot dataset on disk hold no images: this decodes those of
    the frames that were sampled, each once. Robot space. In an environment, which
    brings its own images, it does nothing.

    **Reads** ``episode_index`` and ``frame_index`` int64 ``[*B]``.

    **Writes** each camera's key, uint8 ``[*B, C, h, w]`` RGB. With ``history_size`` T
    above 1 also ``observation_history``, every entry of ``observation`` as
    ``[*B, T, ...]``, the oldest first and the current one last, and
    ``history_is_pad`` bool ``[*B, T]``, True = before the episode's first frame,
    which stands in for it.

    Args:
        frames: all frames of the dataset, ``[F]``.
        reader: of the images of each row; None = there are no cameras.

    Keyword Args:
        camera_keys: where the images of each of the reader's cameras go.
        history_size: ``T``.

    Raises:
        ValueError: ``history_size < 1``.
        MissingKeyError: the sample has no indices, or they are of other frames.
    """

    def __init__(
        self,
        frames: TensorDictBase,
        reader: ImageReader | None,
        *,
        camera_keys: Mapping[str, NestedKey],
        history_size: int = 1,
    ) -> None:
        check_positive_int("RecordedObservations", "history_size", history_size)
        out_keys = list(camera_keys.values())
        if history_size > 1:
            out_keys += [HISTORY_KEY, HISTORY_IS_PAD_KEY]
        super().__init__(in_keys=[EPISODE_KEY, FRAME_KEY], out_keys=out_keys)
        self.history_size = history_size
        self._reader, self._camera_keys = reader, dict(camera_keys)
        self._frames = frames
        self._index = EpisodeIndex(
            _plain(frames.get(EPISODE_KEY)), _plain(frames.get(FRAME_KEY))
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write images and history into sampled data."""
        episode, frame = (tensordict.get(key, None) for key in self.in_keys)
        if episode is None or frame is None:
            raise MissingKeyError(
                f"RecordedObservations: expected {self.in_keys} in the data, got "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        size = self.history_size
        rows, is_pad = self._index.window(episode.cpu(), frame.cpu(), 1 - size, size)
        history = TensorDict({}, rows.shape)
        images = {} if self._reader is None else self._reader.read(rows.flatten())
        for name, image in images.items():
            key, image = self._camera_keys[name], image.unflatten(0, rows.shape)
            tensordict.set(key, image[..., -1, :, :, :].to(tensordict.device))
            history.set(key, image)
        if self.history_size > 1:
            for name, column in self._columns():
                history.set(name, _plain(column)[rows])
            seen = history.get(OBSERVATION_KEY).to(tensordict.device)
            tensordict.set(HISTORY_KEY, seen)
            tensordict.set(HISTORY_IS_PAD_KEY, is_pad.to(tensordict.device))
        return tensordict

    def _columns(self) -> list[tuple[NestedKey, Tensor]]:
        stored = self._frames.get(OBSERVATION_KEY, None)
        if stored is None:
            return []
        items = stored.items(include_nested=True, leaves_only=True)
        return [
            ((OBSERVATION_KEY, *((k,) if isinstance(k, str) else k)), v)
            for k, v in items
        ]

    # An environment has its own eyes.

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict

    def transform_output_spec(self, output_spec: TensorDictBase) -> TensorDictBase:
        """Leave the environment's specs as they are."""
        return output_spec

    def __repr__(self) -> str:
        return (
            f"RecordedObservations(cameras={list(self._camera_keys)}, "
            f"history_size={self.history_size})"
        )


def _plain(column: Tensor) -> Tensor:
    """View a memory-mapped tensor as a plain one, whose indexing is cheaper."""
    return column.as_subclass(torch.Tensor)
