"""Journal of an evaluation: its finished episodes, on the disk as they finish."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from torchrl_vla._internal.durable_files import flush_to_disk, write_text
from torchrl_vla._internal.file_origin import Origin, read_bytes
from torchrl_vla._internal.json_source import parse
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import VLAError
from torchrl_vla.evaluation.result import EpisodeRecord

#: What does not change an episode: a command may go on with other values of it.
_NO_MATTER = {
    *("num_envs", "num_workers", "render_on_demand", "platform"),
    *("json", "video", "video_grid", "device", "merge"),
}
_REMEDY = "Delete the file to start anew."


class JournalError(VLAError, ValueError):
    """The finished episodes of a file are of another evaluation."""


class _Header(TypedDict):
    settings: dict[str, object]


class _Line(TypedDict):
    index: int
    record: EpisodeRecord


class EpisodeJournal:
    """Keep each finished episode in a file, and go on where a process was killed.

    The file has a line of JSON for the settings of the evaluation and one per finished
    episode, each on the disk before the next is written. A half line at its end, of a
    process that was killed, is dropped.

    Args:
        path: of the file; is made if need be.
        settings: of the evaluation, as JSON holds them. Those that change no episode,
            such as the number of environments, may be others than the file's.

    Raises:
        JournalError: the file is of another policy, seed or setting; lists them.
        SchemaError: the file is damaged.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "episodes.jsonl")
        ...     with EpisodeJournal(path, {"seed": 0}) as journal:
        ...         journal.add(3, EpisodeRecord(7, "reach", True, 1.0, 5))
        ...     with EpisodeJournal(path, {"seed": 0}) as journal:
        ...         journal.records[3].seed
        7
    """

    def __init__(self, path: Path | str, settings: Mapping[str, object]) -> None:
        self.path = Path(path)
        self.records: dict[int, EpisodeRecord] = {}
        self._settings = json.loads(json.dumps(_that_matter(settings), default=str))

    def __enter__(self) -> EpisodeJournal:
        if self.path.exists():
            self._read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"settings": self._settings}) + "\n")
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, index: int, record: EpisodeRecord) -> None:
        """Keep a finished episode; returns when it is on the disk."""
        self.records[index] = record
        line = json.dumps({"index": index, "record": vars(record)}) + "\n"
        self._file.write(line.encode("utf-8"))
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the file, once its episodes are kept elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        origin = Origin.of_file("evaluate", self.path, _REMEDY)
        content = read_bytes(origin, self.path)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
            flush_to_disk(self.path)
        with origin.reading("text"):
            first, *lines = whole.decode("utf-8").splitlines() or [""]
        header = typed(parse(first, origin), _Header, origin)["settings"]
        differing = [
            f"{name} {_short(there)} there and {_short(here)} here"
            for name, there, here in _differences(header, self._settings)
        ]
        if differing:
            raise JournalError(
                f"evaluate: expected the settings of the episodes in "
                f"{str(self.path)!r}, got {'; '.join(differing)}. Give the same "
                "settings to go on, delete the file to start anew, or write to "
                "another one."
            )
        for number, text in enumerate(lines, 2):
            row = origin.row(f"line {number}")
            line = typed(parse(text, row), _Line, row)
            self.records[line["index"]] = line["record"]


def _that_matter(settings: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _that_matter(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in _NO_MATTER
    }


def _differences(
    there: Mapping[str, object], here: Mapping[str, object], name: str = ""
) -> list[tuple[str, object, object]]:
    """Return the names of the values that differ, with both values."""
    found = []
    for key in sorted(there.keys() | here.keys()):
        one, other = there.get(key), here.get(key)
        match one, other:
            case dict(), dict():
                found += _differences(one, other, f"{name}{key}.")
            case _ if one != other:
                found.append((f"{name}{key}", one, other))
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
