"""Other wordings of instructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import SchemaError, UnknownInstructionError
from torchrl_vla.schema.instructions import InstructionTable


class Wordings:
    """Give each instruction its wordings, and draw one of them by id.

    For training on paraphrases (``reword_demonstrations``) and for the ablation
    ``reworded-instruction``. An instruction stands for itself only if it is among its
    own wordings.

    Args:
        wordings: instruction to its wordings.

    Raises:
        SchemaError: an instruction has none, or a text is empty.

    Examples:
        >>> wordings = Wordings({"reach the red block": ["touch red", "go to red"]})
        >>> ids = InstructionTable(["reach the red block"]).ids
        >>> wordings.table.decode(wordings.draw(ids, torch.tensor([0.7])))
        ['go to red']
    """

    def __init__(self, wordings: Mapping[str, Iterable[str]]) -> None:
        listed = {text: tuple(dict.fromkeys(new)) for text, new in wordings.items()}
        empty = [text for text, new in listed.items() if not new]
        if empty or not listed:
            raise SchemaError(
                "Wordings: expected at least one wording of each instruction, got none "
                f"of {empty or 'any'}. Leave the instruction out, or list it itself."
            )
        self._wordings = listed
        try:
            self._known = InstructionTable(listed)
            #: The instructions and all their wordings.
            self.table = InstructionTable([*listed, *chain(*listed.values())])
        except ValueError as error:
            raise SchemaError(f"Wordings: {error}") from error
        longest = max(map(len, listed.values()))
        rows = [[self.table.id(text) for text in new] for new in listed.values()]
        self._ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])
        self._counts = torch.tensor([len(row) for row in rows])

    @classmethod
    def from_json(cls, source: str | Path) -> Wordings:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        It is an object of lists: ``{"instruction": ["wording", ...]}``.

        Raises:
            FileNotFoundError: there is no such file.
            SchemaError: it is no such JSON.
        """
        return cls(read_json("Wordings.from_json", source, dict[str, list[str]]))

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instructions that have wordings."""
        return tuple(self._wordings)

    def of(self, instruction: str) -> tuple[str, ...]:
        """Return the wordings of an instruction."""
        return self._wordings[instruction]

    def check_covers(self, caller: str, instructions: Iterable[str]) -> None:
        """Refuse instructions that have no wordings.

        Args:
            caller: opens the error message.
            instructions: that will be reworded.

        Raises:
            UnknownInstructionError: names those without.
        """
        missing = sorted(set(instructions) - set(self._wordings))
        if missing:
            raise UnknownInstructionError(
                f"{caller}: expected wordings of every instruction, got none of "
                f"{missing}. Add them, or list an instruction as its own wording to "
                "keep it."
            )

    def draw(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """Return the id of one wording of each instruction.

        Args:
            ids: int64 ``[*B]``, of instructions that have wordings.
            numbers: float ``[*B]``, uniform in ``[0, 1)``; which wording it is.

        Returns:
            int64 ``[*B]``, ids of :attr:`table`.

        Raises:
            UnknownInstructionError: an id is of another instruction.
        """
        rows = self._known.rows(ids)
        counts = self._counts.to(rows.device)[rows]
        which = (numbers * counts).long().minimum(counts - 1)
        return self._ids.to(rows.device)[rows, which]

    def __repr__(self) -> str:
        total = sum(map(len, self._wordings.values()))
        return f"Wordings({total} of {len(self._wordings)} instructions)"
