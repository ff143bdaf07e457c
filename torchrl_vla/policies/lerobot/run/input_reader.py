"""Look the inputs of a policy up in a tensordict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)


@dataclass
class InputReader:
    """Read a policy's inputs, or say which one is missing and what to do.

    Args:
        image_key: image, or sub-tensordict of cameras; None = is not read.
        state_key: proprioception; None = is not read.
        environment_state_key: simulator state; None = is not read.
        instruction_key: text, or ids; None = is not read.
        instructions: table that gives instruction ids their texts.
        hint: what to do when an input is missing.
    """

    image_key: NestedKey | None
    state_key: NestedKey | None
    environment_state_key: NestedKey | None
    instruction_key: NestedKey | None
    instructions: InstructionTable | None
    hint: str

    def read(self, tensordict: TensorDictBase, key: NestedKey) -> Any:
        """Return an entry.

        Raises:
            MissingKeyError: it is not there.
        """
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"LeRobotPolicyWrapper: expected an input at {key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. {self.hint}"
            )
        return value

    def texts(self, tensordict: TensorDictBase) -> list[str]:
        """Return one instruction per row.

        Raises:
            UnknownInstructionError: ids come without a table, or are not in it.
            SchemaError: there are not as many as rows.
        """
        value = self.read(tensordict, self.instruction_key)
        if not is_text(value):
            if self.instructions is None:
                raise UnknownInstructionError(
                    "LeRobotPolicyWrapper: expected a table for the instruction ids at "
                    f"{self.instruction_key!r}, got none. Pass instructions="
                    "env.instructions (or the dataset's)."
                )
            value = self.instructions.decode(value.flatten())
        texts = instruction_texts(value)
        if len(texts) != tensordict.batch_size.numel():
            raise SchemaError(
                "LeRobotPolicyWrapper: expected one instruction per row at "
                f"{self.instruction_key!r}, got {len(texts)} for a batch "
                f"{list(tensordict.batch_size)}."
            )
        return texts

    def device_of(self, tensordict: TensorDictBase) -> torch.device | None:
        """Return where the inputs are; None without any."""
        for key in (self.state_key, self.environment_state_key, self.image_key):
            if key is not None:
                value = self.read(tensordict, key)
                while not isinstance(value, Tensor):
                    value = next(iter(value.values()))
                return value.device
        return None
