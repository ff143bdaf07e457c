"""Encoder of observations and instructions that the tiny policies share."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor, nn

from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    image_features_key,
    map_as_features,
)
from torchrl_vla.policies.encoders.text_features import TextEncoder
from torchrl_vla.policies.tiny.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.tiny.patch_reader import PatchReader
from torchrl_vla.policies.tiny.text_encoder import ByteTextEncoder
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    ObservationKeys,
    SchemaError,
    UnknownInstructionError,
    check_ids,
    instruction_texts,
    is_text,
)

# Matrix products on CPU compute rows in blocks, which threads share. A block of one to
# three rows takes another path than a whole one, and rounds differently. Filled up to a
# multiple of this, every row is computed alike, so an executor that asks for one
# environment gets the bits that the learner recomputes in its batch.
_BLOCK = 8


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes and inputs of a :class:`TinyBackbone`.

    Args:
        state_dim: ``S``; None = taken from the first call, until which the policy has
            no complete parameters to give an optimizer.
        cameras: names of the cameras; None = one image without a name; ``()`` = no
            image is read.
        hidden: width of the blocks.
        depth: number of residual blocks.
        text_dim: size of an instruction's encoding; ignored with a ``text_encoder``.
        text_max_bytes: longest instruction in UTF-8 bytes, for the default encoder.
        image_sizes: ``(C, h, w)`` of each image, in the order of ``cameras``; images of
            other sizes are refused. None = 3 channels, any height and width.
        text_encoder: of the instructions; each policy gets its own copy. None = a
            :class:`ByteTextEncoder`.
        image_encoder: of all cameras' images; each policy gets its own copy. None = a
            :class:`KeypointImageEncoder` per camera.

    Raises:
        ValueError: there is not one size for each image.
    """

    state_dim: int | None = None
    cameras: tuple[str, ...] | None = None
    hidden: int = 256
    depth: int = 2
    text_dim: int = 64
    text_max_bytes: int = 128
    image_sizes: tuple[tuple[int, int, int], ...] | None = None
    text_encoder: TextEncoder | None = None
    image_encoder: ImageEncoder | None = None

    def __post_init__(self) -> None:
        if self.image_sizes is not None and len(self.image_sizes) != self.num_images:
            raise ValueError(
                f"BackboneConfig: expected {self.num_images} image_sizes for "
                f"cameras={self.cameras}, got {self.image_sizes}. Give one "
                "(C, h, w) per image, in the order of cameras."
            )

    @property
    def num_images(self) -> int:
        """Number of images that are read."""
        return 1 if self.cameras is None else len(self.cameras)


class TinyBackbone(nn.Module):
    """Encode images, state and instruction as one feature vector.

    Each camera has its own :class:`KeypointImageEncoder`, conditioned on the
    instruction; keypoints and state go through residual blocks that the instruction
    modulates again (FiLM). On the id path each text of the table is encoded once per
    forward and gathered, so the cost of language does not grow with the batch. The
    result of an env index does not depend on the others in the batch, not in the last
    bit.

    Args:
        out_dim: size of the output.
        config: sizes, cameras and image sizes.
        keys: entries that are read; an image or state of None is not.
    """

    def __init__(
        self, out_dim: int, config: BackboneConfig, keys: ObservationKeys
    ) -> None:
        super().__init__()
        self.config, self.keys = config, keys = copy.deepcopy((config, keys))
        hidden = config.hidden
        self.text: TextEncoder = config.text_encoder or ByteTextEncoder(
            config.text_dim, max_bytes=config.text_max_bytes
        )
        text_dim = self.text.num_features
        sizes = config.image_sizes or ((3, None, None),) * config.num_images
        sizes = () if keys.image is None else sizes
        self.vision = config.image_encoder
        encoders: list[KeypointImageEncoder | PatchReader]
        if self.vision is None:
            encoders = [KeypointImageEncoder(text_dim, channels=c) for c, *_ in sizes]
        else:
            encoders = [PatchReader(self.vision.num_features, text_dim) for _ in sizes]
        self.image_encoders = nn.ModuleList(encoders)
        width = sum(encoder.out_dim for encoder in encoders) + hidden
        self.entry = nn.Linear(width, hidden)
        if keys.state is not None:
            self.state = _linear(config.state_dim, hidden)
        self.blocks = nn.ModuleList(
            _FilmBlock(hidden, text_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, out_dim)
        self._instructions: InstructionTable | None = None
        self._table_rows: Tensor | None = None  # a cache, not a buffer

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives ids their texts."""
        return self._instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self._instructions = table
        self._table_rows = None
        if table is not None and len(table):
            self.text.expect(table.texts)
            if not self.text.prepares_late:
                self._read_table(table)

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``[*B, out_dim]``."""
        batch = tensordict.batch_size
        text = self._encode_instruction(tensordict)  # [N, E]
        parts = [
            encode(seen, text)
            for encode, seen in zip(
                self.image_encoders, self._see(tensordict), strict=True
            )
        ]
        parts.append(self._encode_state(tensordict, len(text)))
        x = self.entry(torch.cat(parts, -1))
        for block in self.blocks:
            x = block(x, text)
        out = self.out(self.norm(x))
        return out[: batch.numel()].reshape(*batch, out.shape[-1])

    def _see(self, tensordict: TensorDictBase) -> list[Tensor | ImageFeatures]:
        """Return each camera's images, or what the image encoder makes of them."""
        batch = tensordict.batch_size
        if self.vision is None or not len(self.image_encoders):
            return [_rows(image, batch) for image in self._images(tensordict)]
        maps = tensordict.get(image_features_key(self.keys.image), None)
        if maps is None:  # not computed before, see encode_images
            images = self._images(tensordict)
            return [self.vision.encode(_rows(image, batch)) for image in images]
        if not self.vision.frozen:
            raise SchemaError(
                "TinyBackbone: expected images for an image encoder that is trained, "
                f"got features at {image_features_key(self.keys.image)!r}, computed "
                "with other weights. Train on the dataset without encode_images, or "
                "freeze the encoder."
            )
        cameras = self.config.cameras
        found = [maps] if cameras is None else [maps.get(name) for name in cameras]
        return [map_as_features(_rows(rows, batch)) for rows in found]

    def _encode_instruction(self, tensordict: TensorDictBase) -> Tensor:
        value = _require(tensordict, self.keys.instruction, "an instruction")
        if is_text(value):
            data, rows = self._read_texts(instruction_texts(value), tensordict)
        else:
            data, rows = self._read_ids(value, tensordict)
        rows = fill_rows(rows)
        if len(data) <= len(rows):
            return self.text(fill_rows(data))[rows]
        return self.text(data[rows])

    def _read_texts(
        self, texts: list[str], tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        n = tensordict.batch_size.numel()
        if len(texts) != n:
            raise SchemaError(
                "TinyBackbone: expected one text per env index at "
                f"{self.keys.instruction!r}, got {len(texts)} for a batch "
                f"{list(tensordict.batch_size)}."
            )
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        device = self.out.weight.device
        rows = torch.tensor([row_of[text] for text in texts], dtype=torch.int64)
        return self.text.prepare(list(row_of)).to(device), rows.to(device)

    def _read_ids(
        self, ids: Tensor, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        key = self.keys.instruction
        check_ids("TinyBackbone", ids, key, tensordict.batch_size)
        if self._instructions is None:
            raise UnknownInstructionError(
                "TinyBackbone: expected a table for the instruction ids at "
                f"{self.keys.instruction!r}, got none. Set policy.instructions = "
                "env.instructions (or the dataset's)."
            )
        rows = self._instructions.rows(ids).flatten()
        data = self._table_rows
        if (
            data is None
            or len(data) != len(self._instructions)
            or data.device != self.out.weight.device
        ):
            data = self._read_table(self._instructions)
        return data, rows

    def _read_table(self, table: InstructionTable) -> Tensor:
        device = self.out.weight.device
        self._table_rows = self.text.prepare(table.texts).to(device)
        return self._table_rows

    def _images(self, tensordict: TensorDictBase) -> list[Tensor]:
        if not len(self.image_encoders):
            return []
        cameras = self.config.cameras
        value = _require(tensordict, self.keys.image, "an image")
        if cameras is None:
            if is_tensor_collection(value):
                raise SchemaError(
                    f"TinyBackbone: expected one image at {self.keys.image!r}, got "
                    f"cameras {sorted(value.keys())}. Build the policy with "
                    f"cameras={tuple(sorted(value.keys()))}."
                )
            images = [value]
        elif not is_tensor_collection(value) or set(value.keys()) != set(cameras):
            got = (
                sorted(value.keys())
                if is_tensor_collection(value)
                else f"a single image {list(value.shape)}"
            )
            raise SchemaError(
                f"TinyBackbone: expected cameras {cameras} at "
                f"{self.keys.image!r}, got {got}. None is dropped or made up: rename "
                "them, or build the policy for these."
            )
        else:
            images = [value.get(camera) for camera in cameras]
        batch = tensordict.batch_size
        for image in images:
            if image.ndim != len(batch) + 3 or image.shape[:-3] != batch:
                raise SchemaError(
                    f"TinyBackbone: expected images [*B, C, h, w] with *B = "
                    f"{list(batch)} at {self.keys.image!r}, got {list(image.shape)}. "
                    "*B is the tensordict's batch_size."
                )
        self._check_sizes(images)
        return images

    def _check_sizes(self, images: list[Tensor]) -> None:
        if self.config.image_sizes is None:
            return
        names = self.config.cameras or ("image",)
        for name, image, size in zip(
            names, images, self.config.image_sizes, strict=True
        ):
            if image.shape[-3:] != size:
                raise SchemaError(
                    f"TinyBackbone: expected images [*B, C, h, w] with (C, h, w) = "
                    f"{size}, the size that the policy was trained with, of {name!r} "
                    f"at {self.keys.image!r}, got {tuple(image.shape[-3:])}. Append "
                    f"torchrl.envs.transforms.Resize({size[1]}, {size[2]}) to the "
                    "environment, and CHW order if the channels come last."
                )

    def _encode_state(self, tensordict: TensorDictBase, n: int) -> Tensor:
        if self.keys.state is None:
            return self.out.weight.new_zeros(n, self.config.hidden)
        state = _require(tensordict, self.keys.state, "a state")
        batch, size = tensordict.batch_size, self.state.in_features
        size = size or state.shape[-1]  # 0 until a lazy layer has seen one
        if state.shape != (*batch, size) or not state.is_floating_point():
            raise SchemaError(
                f"TinyBackbone: expected a float state {[*batch, size]} at "
                f"{self.keys.state!r}, got {state.dtype} {list(state.shape)}. Build "
                "the policy with state_dim equal to the last dimension, and check the "
                "tensordict's batch_size."
            )
        return self.state(_rows(state.to(self.out.weight.dtype), batch))


class _FilmBlock(nn.Module):
    """A residual block whose hidden layer the instruction scales and shifts."""

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.film = nn.Linear(text_dim, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text).chunk(2, -1)
        hidden = torch.relu(self.up(self.norm(x)) * (1 + scale) + shift)
        return x + self.down(hidden)


def _linear(in_features: int | None, out_features: int) -> nn.Linear:
    if in_features is not None:
        return nn.Linear(in_features, out_features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        return nn.LazyLinear(out_features)


def _rows(value: Tensor, batch: torch.Size) -> Tensor:
    """Turn ``[*B, ...]`` into ``[N, ...]`` in whole blocks of rows."""
    return fill_rows(value.reshape(batch.numel(), *value.shape[len(batch) :]))


def fill_rows(rows: Tensor) -> Tensor:
    """Fill up to whole blocks of rows, so that each is computed alike in any batch."""
    missing = -len(rows) % _BLOCK
    if not missing:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def _require(tensordict: TensorDictBase, key: NestedKey | None, what: str):
    value = tensordict.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"TinyBackbone: expected {what} at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Name another key, or "
            "build the policy without this input."
        )
    return value
