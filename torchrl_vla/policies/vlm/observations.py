"""Images, instructions and states of a tensordict as a trunk reads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor

from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
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

_CALLER = "TransformersVLA"
Entries = dict[str, Tensor]


class ObservationRows:
    """Read the entries that a policy names, as rows ``[N, ...]`` for all of ``*B``.

    Args:
        config: names and sizes of what is read.
        keys: where it is.
        encode: turns an instruction's text into entries ``[L]``; called once per text.
    """

    def __init__(
        self,
        config: TrunkConfig,
        keys: ObservationKeys,
        encode: Callable[[str], Entries],
    ) -> None:
        self.config, self.keys, self._encode = config, keys, encode
        self._instructions: InstructionTable | None = None
        self._of_text: dict[str, Entries] = {}
        self._of_table: tuple[int, Entries] | None = None

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self._instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self._instructions, self._of_table = table, None

    def prompts(self, tensordict: TensorDictBase, device: torch.device) -> Entries:
        """Return each row's prompt, entries ``[N, L]``.

        Raises:
            MissingKeyError: there is no instruction.
            SchemaError: a prompt is too long.
            UnknownInstructionError: an id is in no table.
        """
        key = self.keys.instruction
        value = _require(tensordict, key, "an instruction")
        if is_text(value):
            texts = instruction_texts(value)
            n = tensordict.batch_size.numel()
            if len(texts) != n:
                raise SchemaError(
                    f"{_CALLER}: expected one text per env index at {key!r}, got "
                    f"{len(texts)} for a batch {list(tensordict.batch_size)}."
                )
            return {
                name: value.to(device) for name, value in self._stack(texts).items()
            }
        check_ids(_CALLER, value, key, tensordict.batch_size)
        if self.instructions is None:
            raise UnknownInstructionError(
                f"{_CALLER}: expected a table for the instruction ids at {key!r}, got "
                "none. Set policy.instructions = env.instructions (or the dataset's)."
            )
        rows = self.instructions.rows(value).flatten().to(device)
        table = self._table(self.instructions, device)
        return {name: entry[rows] for name, entry in table.items()}

    def images(self, tensordict: TensorDictBase) -> list[Tensor]:
        """Return the images of each camera, uint8 ``[N, C, h, w]``.

        Float images in 0..1 are rounded to the 256 levels that a processor takes.

        Raises:
            MissingKeyError: there are none.
            SchemaError: they have other names or sizes, or values out of range.
        """
        config, key, batch = self.config, self.keys.image, tensordict.batch_size
        if not config.num_images:
            return []
        value = _require(tensordict, key, "an image")
        names = ("",) if config.cameras is None else config.cameras
        given = dict(value.items()) if is_tensor_collection(value) else {"": value}
        if set(given) != set(names):
            expected = "one image" if config.cameras is None else f"cameras {names}"
            raise SchemaError(
                f"{_CALLER}: expected {expected} at {key!r}, got "
                f"{'one image' if '' in given else f'cameras {sorted(given)}'}. None "
                "is dropped or made up: rename them, or build the policy for these."
            )
        images = []
        for name, size in zip(names, config.image_sizes, strict=True):
            image = given[name]
            if image.shape != (*batch, *size):
                raise SchemaError(
                    f"{_CALLER}: expected images [*B, C, h, w] = {[*batch, *size]} of "
                    f"{name or 'image'!r} at {key!r}, got {list(image.shape)}. The "
                    "policy was built for this size, which its processor then resizes: "
                    f"append torchrl.envs.transforms.Resize({size[1]}, {size[2]}) to "
                    "the environment, or build the policy for yours."
                )
            check_image_range(image, _CALLER)
            if image.is_floating_point():
                image = (image * 255).round().to(torch.uint8)
            images.append(image.reshape(-1, *size))
        return images

    def state(self, tensordict: TensorDictBase) -> Tensor:
        """Return the states, float32 ``[N, S]``.

        Raises:
            MissingKeyError: there are none.
            SchemaError: they have another size.
        """
        key, size = self.keys.state, self.config.state_dim
        state = _require(tensordict, key, "a state")
        expected = [*tensordict.batch_size, size]
        if list(state.shape) != expected or not state.is_floating_point():
            raise SchemaError(
                f"{_CALLER}: expected a float state {expected} at {key!r}, got "
                f"{state.dtype} {list(state.shape)}. Build the policy with the "
                "state_dim of the data, and check the tensordict's batch_size."
            )
        return state.reshape(-1, size).float()

    def _stack(self, texts: list[str]) -> Entries:
        for text in dict.fromkeys(texts):
            if text not in self._of_text:
                self._of_text[text] = self._encode(text)
        found = [self._of_text[text] for text in texts]
        return {
            name: torch.stack([entry[name] for entry in found]) for name in found[0]
        }

    def _table(self, table: InstructionTable, device: torch.device) -> Entries:
        known = self._of_table
        if (
            known is None
            or known[0] != len(table)
            or known[1]["input_ids"].device != device
        ):
            stacked = self._stack(list(table.texts))
            known = (len(table), {k: v.to(device) for k, v in stacked.items()})
            self._of_table = known
        return known[1]


def _require(tensordict: TensorDictBase, key: NestedKey | None, what: str):
    value = tensordict.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"{_CALLER}: expected {what} at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Name another key, or "
            "build the policy without this input."
        )
    return value
