"""Flat tensors and texts of a tensordict, as they cross the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from tensordict import (
    NestedKey,
    NonTensorStack,
    TensorDict,
    TensorDictBase,
    is_tensor_collection,
    unravel_key,
)
from torch import Tensor

from torchrl_vla.errors import WireError
from torchrl_vla.schema import (
    INSTRUCTION_KEY,
    InstructionTable,
    instruction_texts,
    is_text,
)

#: Path of a leaf, ``("observation", "image", "front")``.
Path = tuple[str, ...]


def path_of(key: NestedKey) -> Path:
    """Return a key as the path of its parts.

    Examples:
        >>> path_of("action"), path_of(("observation", "state"))
        (('action',), ('observation', 'state'))
    """
    key = unravel_key(key)
    return (key,) if isinstance(key, str) else key


@dataclass
class Leaves:
    """Hold the leaves of a tensordict by their paths.

    Args:
        batch_size: ``*B``, leading dimensions of every leaf.
        tensors: path to tensor.
        texts: path to one text per row, row by row.

    Examples:
        >>> data = TensorDict({"observation": {"state": torch.zeros(2, 3)}}, [2])
        >>> leaves = Leaves.from_tensordict(data, ["observation"])
        >>> leaves.rows, list(leaves.tensors)
        (2, [('observation', 'state')])
    """

    batch_size: tuple[int, ...]
    tensors: dict[Path, Tensor]
    texts: dict[Path, list[str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows, the product of the batch size."""
        return prod(self.batch_size)

    @classmethod
    def from_tensordict(
        cls,
        tensordict: TensorDictBase,
        keys: Iterable[NestedKey],
        instructions: InstructionTable | None = None,
    ) -> Leaves:
        """Collect the leaves at and below some keys; a key that is absent is left out.

        Args:
            tensordict: ``[*B]``.
            keys: of leaves, or of sub-tensordicts.
            instructions: turns instruction ids into texts; None = ids stay ids.
        """
        leaves = cls(tuple(tensordict.batch_size), {})
        for key in keys:
            path = path_of(key)
            value = tensordict.get(key, None)
            if value is None:
                continue
            if path == path_of(INSTRUCTION_KEY) and instructions is not None:
                value = value if is_text(value) else _decode(instructions, value)
            leaves._add(path, value)
        return leaves

    def _add(self, path: Path, value: Any) -> None:
        if torch.is_tensor(value):
            self.tensors[path] = value
        elif is_text(value):
            self.texts[path] = instruction_texts(value)
        elif is_tensor_collection(value):
            for name, item in value.items():
                self._add((*path, name), item)

    def to_tensordict(self) -> TensorDict:
        """Return the leaves as a tensordict ``[*B]``."""
        made = TensorDict({}, self.batch_size)
        for path, tensor in self.tensors.items():
            made.set(path, tensor)
        for path, texts in self.texts.items():
            made.set(path, _as_leaf(texts, self.batch_size))
        return made

    def flattened(self) -> Leaves:
        """Return the leaves with one batch dimension, their rows."""
        skipped = len(self.batch_size)
        tensors = {
            path: tensor.reshape(self.rows, *tensor.shape[skipped:])
            for path, tensor in self.tensors.items()
        }
        return Leaves((self.rows,), tensors, self.texts)

    @property
    def signature(self) -> tuple[object, ...]:
        """What two requests have to share to be one batch: paths, types and sizes."""
        skipped = len(self.batch_size)
        tensors = sorted(
            (path, str(tensor.dtype), tuple(tensor.shape[skipped:]))
            for path, tensor in self.tensors.items()
        )
        return (*tensors, *sorted(self.texts))

    def check(self, caller: str) -> None:
        """Refuse leaves that are not of the batch size.

        Raises:
            WireError: names the path and both sizes.
        """
        size = self.batch_size
        for path, tensor in self.tensors.items():
            if tuple(tensor.shape[: len(size)]) != size:
                raise WireError(
                    f"{caller}: expected the batch size {list(size)} at {path}, got "
                    f"the shape {list(tensor.shape)}."
                )
        for path, texts in self.texts.items():
            if len(texts) != self.rows:
                raise WireError(
                    f"{caller}: expected {self.rows} texts at {path}, one per row, got "
                    f"{len(texts)}."
                )


def concatenated(parts: Sequence[Leaves]) -> Leaves:
    """Return the rows of several leaves of one signature below each other."""
    flat = [part.flattened() for part in parts]
    if len(flat) == 1:
        return flat[0]
    return Leaves(
        (sum(part.rows for part in flat),),
        {path: torch.cat([p.tensors[path] for p in flat]) for path in flat[0].tensors},
        {path: [t for p in flat for t in p.texts[path]] for path in flat[0].texts},
    )


def split_rows(answer: Leaves, parts: Sequence[Leaves]) -> list[Leaves]:
    """Return each part's rows of a common answer, in its own batch size."""
    made, start = [], 0
    for part in parts:
        rows = slice(start, start + part.rows)
        start += part.rows
        tensors = {
            path: tensor[rows].reshape(*part.batch_size, *tensor.shape[1:])
            for path, tensor in answer.tensors.items()
        }
        made.append(Leaves(part.batch_size, tensors))
    return made


def _decode(table: InstructionTable, ids: Tensor) -> list[str]:
    decoded = table.decode(ids)
    return [decoded] if isinstance(decoded, str) else decoded


def _as_leaf(texts: list[str], batch_size: tuple[int, ...]) -> object:
    if not batch_size:
        return texts[0]
    stack = NonTensorStack(*texts)
    return stack if len(batch_size) == 1 else stack.reshape(batch_size)
