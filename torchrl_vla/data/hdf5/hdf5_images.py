"""Reader and transform for the images of an HDF5 file, read when sampled."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.data.hdf5.hdf5_file import OWNER, REMEDY
from torchrl_vla.schema import EPISODE_KEY, FRAME_KEY, IMAGE_KEY, import_extra

if TYPE_CHECKING:
    import h5py

ImageFlip = Literal["none", "vertical", "rotate_180"]

#: Dimensions of a stored image ``[C, h, w]`` that are flipped.
FLIPS: dict[str, tuple[int, ...]] = {
    "none": (),
    "vertical": (-2,),
    "rotate_180": (-2, -1),
}


@dataclass
class Hdf5Images:
    """Reader of the images of frames; opens the file at first use.

    Args:
        path: the file.
        cameras: the entry of ``obs`` for each camera name.
        flip: applied to the stored images.
    """

    path: Path
    cameras: dict[str, str]
    flip: ImageFlip
    _files: dict[int, h5py.File] = field(
        default_factory=dict, repr=False, compare=False
    )

    def read(self, episode: Tensor, frame: Tensor) -> dict[str, Tensor]:
        """Return uint8 ``[N, 3, h, w]`` of each camera for int64 ``[N]`` indices."""
        with Origin(OWNER, repr(str(self.path)), REMEDY).reading("stored images"):
            return self._read(episode, frame)

    def _read(self, episode: Tensor, frame: Tensor) -> dict[str, Tensor]:
        data = self._open()["data"]
        # In the order of the file, so that each compressed chunk is read once.
        by_frame = frame.argsort(stable=True)
        order = by_frame[episode[by_frame].argsort(stable=True)].tolist()
        rows, frames = episode.tolist(), frame.tolist()
        images = {}
        for camera, key in self.cameras.items():
            shape = data[f"demo_{rows[0]}"]["obs"][key].shape[1:]
            stored = torch.empty(len(rows), *shape, dtype=torch.uint8)
            target = stored.numpy()
            for row in order:
                source = data[f"demo_{rows[row]}"]["obs"][key]
                source.read_direct(target, frames[row], row)
            image = stored.movedim(-1, -3)
            images[camera] = image.flip(FLIPS[self.flip]).contiguous()
        return images

    def _open(self) -> h5py.File:
        # A file handle must not cross a fork: each process opens its own.
        process = os.getpid()
        if process not in self._files:
            h5py = import_extra("h5py", "datasets", "Hdf5Demonstrations")
            self._files[process] = h5py.File(self.path, "r")
        return self._files[process]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}


class ReadHdf5Images(Transform):
    """Transform that writes ``("observation", "image", camera)`` of sampled frames."""

    def __init__(self, images: Hdf5Images) -> None:
        super().__init__(in_keys=[EPISODE_KEY, FRAME_KEY], out_keys=[IMAGE_KEY])
        self.images = images

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the images into sampled frames."""
        shape = tensordict.batch_size
        tensordict = tensordict.copy()  # buffer[:] returns the storage itself
        images = self.images.read(
            tensordict.get(EPISODE_KEY).reshape(-1),
            tensordict.get(FRAME_KEY).reshape(-1),
        )
        for camera, image in images.items():
            tensordict.set((*IMAGE_KEY, camera), image.view(*shape, *image.shape[1:]))
        return tensordict
