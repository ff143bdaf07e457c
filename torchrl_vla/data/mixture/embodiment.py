"""Conversion between the space of one robot and the common space of a mixture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_DIM_IS_PAD_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    CAMERA_IS_PAD_KEY,
    EMBODIMENT_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    SAMPLE_WEIGHT_KEY,
    STATE_DIM_IS_PAD_KEY,
    STATE_KEY,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ActionScaling, StateScaling
from torchrl_vla.transforms.affine_scaling import ScalingMode

_UNCHANGED = (
    INSTRUCTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    ACTION_IS_PAD_KEY,
    SAMPLE_WEIGHT_KEY,
)


class Embodiment:
    """Conversion of one robot's frames to the space of a mixture, and actions back.

    Actions, chunks and the state are normalized by this robot's own statistics and
    padded with zeros to the common sizes; cameras get their common names. Training and
    acting use the same object: the mixture reads frames through it, a policy trained on
    the mixture reads ``to_model_space(observation)``, and the robot executes
    ``to_robot_space(chunk)``, without the padded dimensions.

    **Reads** robot space: ``observation``, ``language_instruction`` and, where present,
    ``action``, ``action_chunk``, ``action_is_pad``, ``sample_weight``,
    ``episode_index`` and ``frame_index``. **Writes** those, ``action`` ``[*B, A]``,
    ``action_chunk`` ``[*B, H, A]`` and ``("observation", "state")`` ``[*B, S]`` in
    model space, with ``action_dim_is_pad`` bool ``[*B, A]``, ``state_dim_is_pad`` bool
    ``[*B, S]``, ``camera_is_pad`` bool ``{camera: [*B]}`` and ``embodiment_index``
    int64 ``[*B]``.
    Other entries are left out.

    Args:
        index: its number in the mixture.
        metadata: of the robot, with statistics.

    Keyword Args:
        action_dim: the common ``A``.
        state_dim: the common ``S``; 0 = no robot of the mixture has a state.
        cameras: the key of this robot's image for each common camera name; a key None
            means that it lacks the camera, whose image is black. None instead of a
            mapping: images keep their keys.
        image_shapes: ``(C, h, w)`` of each common camera; images are resized to it.
        mode: how actions and states are normalized.

    Raises:
        MetadataError: the metadata have no statistics.
        MissingKeyError: an image or a state is not in the data.
        SchemaError: an image is not uint8.

    Examples:
        >>> from torchrl_vla.schema import FeatureStatistics
        >>> stats = FeatureStatistics.from_samples(torch.tensor([[1.0], [5.0]]))
        >>> arm = Embodiment(
        ...     0,
        ...     RobotDatasetMetadata("arm", action_statistics=stats),
        ...     action_dim=3,
        ...     state_dim=0,
        ... )
        >>> row = arm.to_model_space(TensorDict(action=torch.tensor([5.0])))
        >>> row["action"], row["action_dim_is_pad"]
        (tensor([1., 0., 0.]), tensor([False,  True,  True]))
        >>> arm.to_robot_space(row["action"])
        tensor([5.])
    """

    def __init__(
        self,
        index: int,
        metadata: RobotDatasetMetadata,
        *,
        action_dim: int,
        state_dim: int,
        cameras: Mapping[str, NestedKey | None] | None = None,
        image_shapes: Mapping[NestedKey, torch.Size] | None = None,
        mode: ScalingMode = "mean_std",
    ) -> None:
        self.index = index
        self.metadata = metadata
        self.action_dim = action_dim
        self.state_dim = state_dim
        self.cameras = None if cameras is None else dict(cameras)
        self.image_shapes = dict(image_shapes or {})
        self.action_scaling = ActionScaling.from_metadata(metadata, mode)
        self.state_scaling = (
            None
            if metadata.state_dim is None
            else StateScaling.from_metadata(metadata, mode)
        )

    @property
    def action_dim_is_pad(self) -> Tensor:
        """Bool ``[A]``, True = this robot has no such dimension."""
        return torch.arange(self.action_dim) >= (self.metadata.action_dim or 0)

    @property
    def state_dim_is_pad(self) -> Tensor:
        """Bool ``[S]``, True = this robot has no such dimension."""
        return torch.arange(self.state_dim) >= (self.metadata.state_dim or 0)

    def to_model_space(self, frames: TensorDictBase) -> TensorDict:
        """Return frames, or an observation, in the policy's model space."""
        shape = frames.batch_size
        out = TensorDict({}, shape, device=frames.device)
        for key in (ACTION_KEY, ACTION_CHUNK_KEY):
            if (value := frames.get(key, None)) is not None:
                value = self.action_scaling.normalize(value)
                out.set(key, pad_last(value, self.action_dim))
        for key in _UNCHANGED:
            if (value := frames.get(key, None)) is not None:
                out.set(key, value)
        self._write(out, ACTION_DIM_IS_PAD_KEY, self.action_dim_is_pad)
        self._write(out, EMBODIMENT_KEY, torch.tensor(self.index))
        if self.state_dim:
            out.set(STATE_KEY, self._state(frames))
            self._write(out, STATE_DIM_IS_PAD_KEY, self.state_dim_is_pad)
        for key, shape_of_camera in self.image_shapes.items():
            source = key if self.cameras is None else self.cameras[key[-1]]
            out.set(key, self._image(frames, source, shape_of_camera))
        for name, source in (self.cameras or {}).items():
            self._write(out, (CAMERA_IS_PAD_KEY, name), torch.tensor(source is None))
        return out

    def to_robot_space(self, chunk: Tensor) -> Tensor:
        """Return actions ``[..., A]`` of model space as this robot's, unpadded.

        Raises:
            SchemaError: the last dimension is not the common ``A``.
        """
        if chunk.shape[-1:] != (self.action_dim,):
            raise SchemaError(
                f"Embodiment {self.metadata.dataset_id!r}: expected actions "
                f"[..., {self.action_dim}] of the mixture's size, got shape "
                f"{tuple(chunk.shape)}. Pass the policy's whole chunk."
            )
        return self.action_scaling.denormalize(chunk[..., : self.metadata.action_dim])

    def _write(self, out: TensorDict, key: NestedKey, value: Tensor) -> None:
        value = value.to(out.device or value.device)
        out.set(key, value.expand((*out.batch_size, *value.shape)).clone())

    def _state(self, frames: TensorDictBase) -> Tensor:
        if self.state_scaling is None:  # a robot without a state among those with one
            return torch.zeros(*frames.batch_size, self.state_dim, device=frames.device)
        state = self._get(frames, STATE_KEY)
        return pad_last(self.state_scaling.normalize(state), self.state_dim)

    def _image(
        self, frames: TensorDictBase, source: NestedKey | None, shape: torch.Size
    ) -> Tensor:
        if source is None:
            black = torch.zeros(1, dtype=torch.uint8, device=frames.device)
            return black.expand(*frames.batch_size, *shape).clone()
        image = self._get(frames, source)
        if image.dtype != torch.uint8:
            raise SchemaError(
                f"Embodiment {self.metadata.dataset_id!r}: expected uint8 images at "
                f"{source!r}, got {image.dtype}. Store images as uint8, 0..255."
            )
        return resize(image, shape[-2:])

    def _get(self, frames: TensorDictBase, key: NestedKey) -> Tensor:
        value = frames.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"Embodiment {self.metadata.dataset_id!r}: expected {key!r} in the "
                f"data, got only {sorted(map(str, frames.keys(True, True)))}."
            )
        return value

    def __repr__(self) -> str:
        return (
            f"Embodiment({self.index}, {self.metadata.dataset_id!r}, "
            f"action {self.metadata.action_dim} of {self.action_dim}, "
            f"state {self.metadata.state_dim or 0} of {self.state_dim})"
        )


def pad_last(value: Tensor, size: int) -> Tensor:
    """Append zeros to the last dimension until it has ``size``, as float32."""
    return F.pad(value.to(torch.float32), (0, size - value.shape[-1]))


def resize(images: Tensor, size: torch.Size) -> Tensor:
    """Stretch uint8 images ``[..., C, h, w]`` to ``size``, bilinear, antialiased."""
    if images.shape[-2:] == size:
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    # Torch has a uint8 kernel on the CPU only: 6 times faster, equal within one level.
    if images.device.type != "cpu":
        flat = flat.float()
    flat = F.interpolate(flat, tuple(size), mode="bilinear", antialias=True)
    if flat.is_floating_point():
        flat = flat.round_().clamp_(0, 255).to(torch.uint8)
    return flat.view(*images.shape[:-2], *size)


def image_leaves(frames: TensorDictBase) -> dict[NestedKey, Tensor]:
    """Return the images of frames by key: one tensor, or one per camera.

    Examples:
        >>> images = {"front": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}
        >>> frames = TensorDict({"observation": {"image": images}}, [2])
        >>> list(image_leaves(frames))
        [('observation', 'image', 'front')]
    """
    found = frames.get(IMAGE_KEY, None)
    if found is None:
        return {}
    if torch.is_tensor(found):
        return {IMAGE_KEY: found}
    return {(*IMAGE_KEY, name): image for name, image in found.items()}
