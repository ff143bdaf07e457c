"""From an observation and an instruction to one feature vector."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor, nn

from torchrl_vla.policies.tiny.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.tiny.text_encoder import ByteTextEncoder
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)

# Matrix products on CPU compute rows in blocks, which threads share. A block of one to
# three rows takes another path than a whole one, and rounds differently. Filled up to a
# multiple of this, every row is computed alike, so an executor that asks for one
# environment gets the bits that the learner recomputes in its batch.
_BLOCK = 8


class TinyBackbone(nn.Module):
    """Encode what a tiny policy sees, feels and is told, then think it over.

    Each camera has its own :class:`KeypointImageEncoder`, conditioned on the
    instruction; keypoints and state go through residual blocks that the instruction
    modulates again (FiLM). On the id path each text of the table is encoded once per
    forward and gathered, so the cost of language does not grow with the batch. A row's
    result does not depend on the rows beside it, not in the last bit.

    Args:
        out_dim: size of the output.
        image_key: image or sub-tensordict; None = does not look.
        cameras: names under ``image_key``; None = one image lies there itself.
        state_key: proprioception; None = is not read.
        state_dim: its size; None = taken from the first call.
        instruction_key: text, or int64 ids of ``instructions``.
        hidden: width of the blocks.
        depth: number of blocks.
        text_dim: size of an instruction's encoding.
        text_max_bytes: longest instruction.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        image_key: NestedKey | None,
        cameras: tuple[str, ...] | None,
        state_key: NestedKey | None,
        state_dim: int | None,
        instruction_key: NestedKey,
        hidden: int,
        depth: int,
        text_dim: int,
        text_max_bytes: int,
    ) -> None:
        super().__init__()
        self.image_key, self.cameras = image_key, cameras
        self.state_key, self.instruction_key = state_key, instruction_key
        self.text = ByteTextEncoder(text_dim, max_bytes=text_max_bytes)
        n_images = 0 if image_key is None else 1 if cameras is None else len(cameras)
        self.eyes = nn.ModuleList(
            KeypointImageEncoder(text_dim) for _ in range(n_images)
        )
        self.entry = nn.Linear(sum(eye.out_dim for eye in self.eyes) + hidden, hidden)
        if state_key is not None:
            self.state = _linear(state_dim, hidden)
        self.blocks = nn.ModuleList(_FilmBlock(hidden, text_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, out_dim)
        self._hidden = hidden
        self._instructions: InstructionTable | None = None
        self._table_bytes: Tensor | None = None  # a cache, not a buffer

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives ids their texts."""
        return self._instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self._instructions = table
        self._table_bytes = None
        if table is not None and len(table):
            self._read_table()

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``[*B, out_dim]``."""
        batch = tensordict.batch_size
        text = self._encode_instruction(tensordict)  # [N, E]
        parts = [
            eye(_rows(image, batch), text)
            for eye, image in zip(self.eyes, self._images(tensordict))
        ]
        parts.append(self._encode_state(tensordict, len(text)))
        x = self.entry(torch.cat(parts, -1))
        for block in self.blocks:
            x = block(x, text)
        out = self.out(self.norm(x))
        return out[: batch.numel()].reshape(*batch, out.shape[-1])

    def _encode_instruction(self, tensordict: TensorDictBase) -> Tensor:
        value = _require(tensordict, self.instruction_key, "an instruction")
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
                f"TinyBackbone: expected one text per row at {self.instruction_key!r}, "
                f"got {len(texts)} for a batch {list(tensordict.batch_size)}."
            )
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        device = self.out.weight.device
        rows = torch.tensor([row_of[text] for text in texts], dtype=torch.int64)
        return self.text.to_bytes(list(row_of)).to(device), rows.to(device)

    def _read_ids(
        self, ids: Tensor, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        if self._instructions is None:
            raise UnknownInstructionError(
                "TinyBackbone: expected a table for the instruction ids at "
                f"{self.instruction_key!r}, got none. Set policy.instructions = "
                "env.instructions (or the dataset's)."
            )
        if ids.shape != tensordict.batch_size:
            raise SchemaError(
                f"TinyBackbone: expected one id per row at {self.instruction_key!r}, "
                f"shape {list(tensordict.batch_size)}, got {list(ids.shape)}."
            )
        rows = self._instructions.rows(ids).flatten()
        data = self._table_bytes
        if (
            data is None
            or len(data) != len(self._instructions)
            or data.device != self.out.weight.device
        ):
            data = self._read_table()
        return data, rows

    def _read_table(self) -> Tensor:
        device = self.out.weight.device
        self._table_bytes = self.text.to_bytes(self._instructions.texts).to(device)
        return self._table_bytes

    def _images(self, tensordict: TensorDictBase) -> list[Tensor]:
        if not len(self.eyes):
            return []
        value = _require(tensordict, self.image_key, "an image")
        if self.cameras is None:
            if is_tensor_collection(value):
                raise SchemaError(
                    f"TinyBackbone: expected one image at {self.image_key!r}, got "
                    f"cameras {sorted(value.keys())}. Build the policy with "
                    f"cameras={tuple(sorted(value.keys()))}."
                )
            images = [value]
        elif not is_tensor_collection(value) or set(value.keys()) != set(self.cameras):
            got = (
                sorted(value.keys())
                if is_tensor_collection(value)
                else f"a single image {list(value.shape)}"
            )
            raise SchemaError(
                f"TinyBackbone: expected cameras {self.cameras} at "
                f"{self.image_key!r}, got {got}. None is dropped or made up: rename "
                "them, or build the policy for these."
            )
        else:
            images = [value.get(camera) for camera in self.cameras]
        batch = tensordict.batch_size
        for image in images:
            if image.ndim != len(batch) + 3 or image.shape[:-3] != batch:
                raise SchemaError(
                    f"TinyBackbone: expected images [*B, C, h, w] with *B = "
                    f"{list(batch)} at {self.image_key!r}, got {list(image.shape)}. "
                    "*B is the tensordict's batch_size."
                )
        return images

    def _encode_state(self, tensordict: TensorDictBase, n: int) -> Tensor:
        if self.state_key is None:
            return self.out.weight.new_zeros(n, self._hidden)
        state = _require(tensordict, self.state_key, "a state")
        batch, size = tensordict.batch_size, self.state.in_features
        size = size or state.shape[-1]  # 0 until a lazy layer has seen one
        if state.shape != (*batch, size) or not state.is_floating_point():
            raise SchemaError(
                f"TinyBackbone: expected a float state {[*batch, size]} at "
                f"{self.state_key!r}, got {state.dtype} {list(state.shape)}. Build the "
                "policy with state_dim equal to the last dimension, and check the "
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


def _require(tensordict: TensorDictBase, key: NestedKey, what: str) -> Any:
    value = tensordict.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"TinyBackbone: expected {what} at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Name another key, or "
            "build the policy without this input."
        )
    return value
