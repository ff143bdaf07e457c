"""Instruction texts, and the table of their integer ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorData, NonTensorStack, is_non_tensor
from torch import Tensor

from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.readable_values import can_be_read
from torchrl_vla.errors import SchemaError, UnknownInstructionError

_MASK_63_BITS = (1 << 63) - 1


class InstructionTable:
    """Translate instructions between text and int64 ids.

    Text is slow: a ``NonTensorStack`` in a rollout costs tens of times the step.
    An id is a number that moves with the batch. It is a *hash of the text*, not a
    row number, so two processes or datasets that never met agree on it, and an id
    that a table does not know is refused, never read as another text. Two texts
    with one hash are refused when the second is added.

    Args:
        texts: the instructions to start with; repetitions are ignored.

    Raises:
        ValueError: a text is empty, or its hash collides with another's.
        TypeError: a text is not a ``str``.

    Examples:
        >>> table = InstructionTable(["reach the red block"])
        >>> ids = table.encode(["reach the red block", "open the door"])
        >>> table.decode(ids)
        ['reach the red block', 'open the door']
        >>> table.rows(ids)
        tensor([0, 1])
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        if isinstance(texts, str):
            raise TypeError(
                "InstructionTable: expected an iterable of texts at argument 'texts', "
                f"got the single text {texts!r}. Pass [{texts!r}]."
            )
        self._text_by_id: dict[int, str] = {}
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> int:
        """Add a text (or find it) and return its id."""
        identifier = _hash(text)
        if identifier not in self._text_by_id:
            self._text_by_id[identifier] = text
            self._index.clear()
        known = self._text_by_id[identifier]
        if known != text:
            raise ValueError(
                f"InstructionTable: expected one text per id, got {text!r} and "
                f"{known!r} with the same hash {identifier}. Reword one of them."
            )
        return identifier

    def id(self, text: str) -> int:
        """Return the id of a text that the table already holds."""
        identifier = _hash(text)
        if identifier not in self._text_by_id:
            raise UnknownInstructionError(
                f"InstructionTable: expected one of {list(self.texts)}, got {text!r}. "
                "Add it with table.add(text)."
            )
        return identifier

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts in the order in which they were added."""
        return tuple(self._text_by_id.values())

    @property
    def ids(self) -> Tensor:
        """The ids of :attr:`texts`, int64 ``[N]``."""
        return torch.tensor(list(self._text_by_id), dtype=torch.int64)

    def encode(self, text: Any) -> Tensor:
        """Turn text into ids, adding the texts that are new.

        Args:
            text: a ``str``, a (nested) list of them, or the non-tensor leaf of a
                tensordict.

        Returns:
            int64 ids of the text's batch shape (0-d for a single ``str``).
        """
        return torch.tensor(_map(self.add, _unwrap(text)), dtype=torch.int64)

    def decode(self, ids: Tensor) -> Any:
        """Turn ids into text: a ``str`` for a 0-d tensor, else nested lists.

        Raises:
            UnknownInstructionError: an id is not in the table.
        """
        texts = self.texts
        return _map(texts.__getitem__, self.rows(ids).tolist())

    def rows(self, ids: Tensor) -> Tensor:
        """Return the position in :attr:`texts` of each id.

        Args:
            ids: int64 ids of any shape.

        Returns:
            int64 tensor of the same shape, each in ``[0, len(table))``.

        Raises:
            UnknownInstructionError: an id is not in the table. While
                it is compiled or captured the check is a device-side assertion.
        """
        if ids.dtype != torch.int64:
            raise TypeError(
                "InstructionTable.rows: expected int64 ids, got "
                f"{ids.dtype}. Ids come from InstructionTable.encode."
            )
        if not self._text_by_id:
            raise UnknownInstructionError(
                "InstructionTable.rows: expected a table with at least one text, got "
                "an empty one. Add the texts that the ids stand for."
            )
        sorted_ids, order = self._sorted(ids.device)
        position = torch.searchsorted(sorted_ids, ids).clamp(max=len(self) - 1)
        known = sorted_ids[position] == ids
        if torch._C._functorch.is_batchedtensor(ids):  # in vmap a value cannot be read
            known = torch._C._functorch.get_unwrapped(known)
            ids = torch._C._functorch.get_unwrapped(ids)
        if not can_be_read(ids):
            torch._assert_async(known.all(), "InstructionTable: an id is unknown.")
        elif not known.all():
            foreign = ids[~known].flatten().unique().tolist()
            raise UnknownInstructionError(
                f"InstructionTable.rows: expected ids of {list(self.texts)}, got "
                f"unknown ids {foreign}. Use the table of the dataset or environment "
                "that made the ids, or add the missing texts to this one."
            )
        return order[position]

    def to_json(self) -> str:
        """Write the table as a JSON list of texts."""
        return json.dumps(list(self.texts), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, source: str | Path) -> InstructionTable:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        Raises:
            FileNotFoundError: there is no such file.
            SchemaError: it is no JSON, or no list of texts with words.
        """
        caller = "InstructionTable.from_json"
        texts = read_json(caller, source, list[str])
        try:
            return cls(texts)
        except ValueError as error:
            raise SchemaError(f"{caller}: {error}") from error

    def _sorted(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._index:
            sorted_ids, order = self.ids.sort()
            self._index[device] = (sorted_ids.to(device), order.to(device))
        return self._index[device]

    def __len__(self) -> int:
        return len(self._text_by_id)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text in self._text_by_id.values()

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InstructionTable):
            return NotImplemented
        return self.texts == other.texts

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self.texts[:3])
        more = f", ... {len(self) - 3} more" if len(self) > 3 else ""
        return f"{type(self).__name__}([{shown}{more}])"


def is_text(value: Any) -> bool:
    """Tell an instruction that is text (str, list, non-tensor leaf) from ids.

    Examples:
        >>> is_text("pick"), is_text(["pick", "place"]), is_text(torch.tensor([3]))
        (True, True, False)
    """
    return isinstance(value, (str, list, tuple)) or is_non_tensor(value)


def instruction_texts(value: Any) -> list[str]:
    """Flatten a text instruction (see :func:`is_text`) to a list of ``str``.

    Examples:
        >>> instruction_texts([["pick", "place"], ["push", "pull"]])
        ['pick', 'place', 'push', 'pull']
    """
    flat: list[str] = []
    _map(flat.append, _unwrap(value))
    return flat


def check_ids(caller: str, value: Tensor, key: object, batch_size: torch.Size) -> None:
    """Refuse instructions that are neither text nor ids: tokens of a language model.

    Args:
        caller: opens the error message.
        value: what is there.
        key: where it is.
        batch_size: ``*B``, the shape of ids.

    Raises:
        SchemaError: they are of another shape.

    Examples:
        >>> check_ids("TinyVLA", torch.zeros(2, 8).long(), "task", torch.Size([2]))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: TinyVLA: expected one id per env index at \
'task', shape [2], got [2, 8]. It reads text or ids of an InstructionTable, no tokens \
[*B, L] of a language model: give it the text, or take a policy that reads tokens.
    """
    if value.shape != batch_size:
        raise SchemaError(
            f"{caller}: expected one id per env index at {key!r}, shape "
            f"{list(batch_size)}, got {list(value.shape)}. It reads text or ids of an "
            "InstructionTable, no tokens [*B, L] of a language model: give it the "
            "text, or take a policy that reads tokens."
        )


def _hash(text: str) -> int:
    if not isinstance(text, str):
        raise TypeError(
            f"InstructionTable: expected a text, got {type(text).__name__} {text!r}."
        )
    if not text.strip():
        raise ValueError(
            f"InstructionTable: expected an instruction with words, got {text!r}. "
            "Every episode needs one."
        )
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK_63_BITS


def _unwrap(value: Any) -> Any:
    """Turn a non-tensor leaf into (nested lists of) plain Python values."""
    if isinstance(value, NonTensorStack):
        return value.tolist()
    if isinstance(value, NonTensorData):
        return value.tolist() if value.batch_size else value.data
    return value


def _map(function: Any, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_map(function, item) for item in value]
    return function(value)
