"""Transform that decodes images and gathers history when frames are sampled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
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
    """Add the images of the cameras, and the observation history, to sampled frames.

    The frames of a LeRobot dataset hold no images: this transform decodes the images
    of the sampled frames, each once. Robot space. In an environment it does nothing.

    **Reads** ``episode_index`` and ``frame_index`` int64 ``[*B]``.

    **Writes** each camera's key, uint8 ``[*B, C, h, w]`` RGB. With ``history_size`` T
    above 1 also ``observation_history``, every entry of ``observation`` as
    ``[*B, T, ...]``, the oldest first and the current one last, and
    ``history_is_pad`` bool ``[*B, T]``, True = before the episode's first frame, which
    is repeated there.

    Args:
        frames: all frames of the dataset, ``[F]``.
        reader: of the images of each row; None = no cameras.

    Keyword Args:
        camera_keys: the key of each camera of the reader.
        history_size: ``T``.

    Raises:
        ValueError: ``history_size < 1``.
        MissingKeyError: the sample has no indices, or indices of other frames.
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
        tensordict = tensordict.copy()  # buffer[:] returns the storage itself
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
            past = history.get(OBSERVATION_KEY).to(tensordict.device)
            tensordict.set(HISTORY_KEY, past)
            tensordict.set(HISTORY_IS_PAD_KEY, is_pad.to(tensordict.device))
        return tensordict

    def _columns(self) -> list[tuple[NestedKey, Tensor]]:
        stored = self._frames.get(OBSERVATION_KEY, None)
        if stored is None:
            return []
        items = stored.items(include_nested=True, leaves_only=True)
        return [(unravel_key((OBSERVATION_KEY, key)), value) for key, value in items]

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # an environment renders its own images

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
