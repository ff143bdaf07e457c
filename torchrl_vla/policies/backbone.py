"""From an observation and an instruction to one feature vector."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor, nn

from torchrl_vla.policies.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.text_encoder import ByteTextEncoder
from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)


class TinyBackbone(nn.Module):
    """Encode what a tiny policy sees, feels and is told, then think it over.

    Each camera has its own :class:`KeypointImageEncoder`, conditioned on the
    instruction; keypoints and state go through residual blocks that the instruction
    modulates again (FiLM). On the id path each text of the table is encoded once per
    forward and gathered, so the cost of language does not grow with the batch.

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
            self.state = (
                nn.LazyLinear(hidden)
                if state_dim is None
                else nn.Linear(state_dim, hidden)
            )
        self.blocks = nn.ModuleList(_FilmBlock(hidden, text_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, out_dim)
        self._hidden = hidden
        self._instructions: InstructionTable | None = None
        self.register_buffer("_table_bytes", None, persistent=False)

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

    def _read_table(self) -> Tensor:
        device = self.out.weight.device
        self._table_bytes = self.text.to_bytes(self._instructions.texts).to(device)
        return self._table_bytes

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``[*B, out_dim]``."""
        batch = tensordict.batch_size
        text = self._encode_instruction(tensordict)  # [N, E]
        parts = [
            eye(image.flatten(0, image.ndim - 4) if batch else image[None], text)
            for eye, image in zip(self.eyes, self._images(tensordict))
        ]
        parts.append(self._encode_state(tensordict, len(text)))
        x = self.entry(torch.cat(parts, -1))
        for block in self.blocks:
            x = block(x, text)
        out = self.out(self.norm(x))
        return out.unflatten(0, batch) if batch else out[0]

    def _encode_instruction(self, tensordict: TensorDictBase) -> Tensor:
        value = _require(tensordict, self.instruction_key, "an instruction")
        if is_text(value):
            texts = instruction_texts(value)
            unique = list(dict.fromkeys(texts))
            rows = torch.tensor([unique.index(text) for text in texts])
            data = self.text.to_bytes(unique).to(self.out.weight.device)
            return self.text(data)[rows.to(data.device)]
        if self._instructions is None:
            raise UnknownInstructionError(
                "TinyBackbone: expected a table for the instruction ids at "
                f"{self.instruction_key!r}, got none. Set policy.instructions = "
                "env.instructions (or the dataset's)."
            )
        rows = self._instructions.rows(value).flatten()
        data = self._table_bytes
        if data is None or len(data) != len(self._instructions):
            data = self._read_table()
        if len(data) <= len(rows):
            return self.text(data)[rows]
        return self.text(data[rows])

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
            return [value]
        if not is_tensor_collection(value) or set(value.keys()) != set(self.cameras):
            got = (
                sorted(value.keys())
                if is_tensor_collection(value)
                else f"a single image {tuple(value.shape)}"
            )
            raise SchemaError(
                f"TinyBackbone: expected cameras {self.cameras} at "
                f"{self.image_key!r}, got {got}. None is dropped or made up: rename "
                "them, or build the policy for these."
            )
        return [value.get(camera) for camera in self.cameras]

    def _encode_state(self, tensordict: TensorDictBase, n: int) -> Tensor:
        if self.state_key is None:
            return self.out.weight.new_zeros(n, self._hidden)
        state = _require(tensordict, self.state_key, "a state")
        return self.state(state.reshape(n, -1).to(self.out.weight.dtype))


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


def _require(tensordict: TensorDictBase, key: NestedKey, what: str) -> Any:
    value = tensordict.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"TinyBackbone: expected {what} at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Name another key, or "
            "build the policy without this input."
        )
    return value
