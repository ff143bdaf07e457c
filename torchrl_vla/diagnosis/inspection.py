"""Inspection of what is on disk: facts, tables, problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or worth knowing, in a file or folder.

    Args:
        where: key, file or row.
        message: what was expected and what is there, with numbers.
        remedy: what to do.
        is_note: True = ordinary in good data; it does not change the exit status.

    Examples:
        >>> print(Problem("'action' row 3", "NaN in dimension 0", "Repair the frame."))
        problem: 'action' row 3: NaN in dimension 0. Repair the frame.
    """

    where: str
    message: str
    remedy: str
    is_note: bool = False

    def __str__(self) -> str:
        kind = "note" if self.is_note else "problem"
        return f"{kind}: {self.where}: {self.message}. {self.remedy}".rstrip()


#: A row of a table.
Row = Mapping[str, object]


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect_path`; prints itself, and writes JSON and HTML.

    Args:
        path: what was inspected.
        kind: what it is, such as ``"LeRobot dataset"``.
        readable: False = its reader refused it; the only problem is why.
        facts: sizes and names.
        tables: by title, rows of the same columns.
        problems: and notes.
        pictures: by caption, uint8 RGB ``[3, h, w]``.
        curves: by title, ``(x, y)`` with its axis labels, for charts.

    Examples:
        >>> print(Inspection("a.json", "evaluation", facts={"episodes": 2}))
        evaluation: a.json
          episodes  2
        no problem was found
    """

    path: str
    kind: str
    readable: bool = True
    facts: Mapping[str, object] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 = clean, 1 = there are problems, 2 = it cannot be read."""
        if not self.readable:
            return 2
        return int(any(not problem.is_note for problem in self.problems))

    def to_json(self) -> str:
        """Return all but pictures and curves as JSON."""
        values = {
            "path": self.path,
            "kind": self.kind,
            "readable": self.readable,
            "exit_code": self.exit_code,
            "facts": dict(self.facts),
            "tables": {name: list(rows) for name, rows in self.tables.items()},
            "problems": [asdict(problem) for problem in self.problems],
        }
        return json.dumps(values, indent=2, default=str)

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.path}"]
        width = max((len(name) for name in self.facts), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in self.facts.items()]
        for title, rows in self.tables.items():
            if rows:
                lines += [f"{title}:", *_table(rows)]
        lines += [str(problem) for problem in self.problems]
        if not any(not problem.is_note for problem in self.problems):
            lines.append("no problem was found")
        return "\n".join(lines)


def unreadable(path: Path | str, kind: str, error: Exception) -> Inspection:
    """Return the inspection of what its reader refused."""
    text = " ".join(str(error).split()).rstrip(".")
    problem = Problem(str(path), f"{type(error).__name__}: {text}", "")
    return Inspection(str(path), kind, readable=False, problems=(problem,))


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def reading(path: Path, kind: str, read: Callable[[Path], Inspection]) -> Inspection:
    """Return what a reader finds, or its error as the one problem.

    Args:
        path: of the thing.
        kind: what it seems to be.
        read: reads it.
    """
    try:
        return read(path)
    except Exception as error:
        # Whatever a damaged file makes a reader raise: the next file is inspected, too.
        return unreadable(path, kind, error)
