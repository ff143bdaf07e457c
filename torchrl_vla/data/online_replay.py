"""Replay of decisions from several sources, in fixed shares, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from tensordict import TensorDict, TensorDictBase, is_leaf_nontensor
from torch import Tensor

from torchrl_vla._internal.durable_files import remove, write_bytes
from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.errors import ResumeError, SettingsError
from torchrl_vla.schema import SchemaError, check_positive_int

_REMEDY = "Begin the training again in another folder."
_SEPARATOR = "/"


class OnlineReplay:
    """Mix demonstrations, online decisions and corrections in fixed shares.

    Rows are added in segments, each one file that is written whole or not at all. The
    state (:meth:`state_dict`) names the segments and counts what was drawn: with it, a
    training that is killed goes on with the rows and the shares of an uninterrupted
    one. Segments that are newer than a state are removed when it is read.

    Each source keeps its newest segments up to ``capacity`` rows. On disk that is,
    after :meth:`prune`, all that it takes; in memory, where rows have room to grow, at
    most twice that and one segment.

    Note:
        Over any number of draws, each source has contributed its share of the rows to
        within one row. A source without rows contributes none; its share is then
        divided among the others, in proportion.

    Args:
        folder: of the segments, one folder per source; is created if need be.
        shares: of the rows of a batch by source; their sum is 1.

    Keyword Args:
        capacity: most rows of a source.

    Raises:
        SettingsError: the shares are negative or do not add up to 1.
        ValueError: ``capacity`` is not positive.

    Examples:
        >>> import tempfile
        >>> replay = OnlineReplay(
        ...     tempfile.mkdtemp(), {"demonstrations": 0.25, "online": 0.75}
        ... )
        >>> for source, number in (("demonstrations", 0), ("online", 1)):
        ...     rows = TensorDict(number=torch.full((5,), number), batch_size=[5])
        ...     replay.add(source, rows)
        >>> drawn = [replay.sample(2)["number"].sum().item() for _ in range(4)]
        >>> sum(drawn)  # of 8 rows in all
        6
    """

    def __init__(
        self,
        folder: Path | str,
        shares: Mapping[str, float],
        *,
        capacity: int = 100_000,
    ) -> None:
        check_positive_int("OnlineReplay", "capacity", capacity)
        total = sum(shares.values())
        if min(shares.values(), default=-1.0) < 0 or abs(total - 1) > 1e-9:
            raise SettingsError(
                "OnlineReplay: expected shares >= 0 that add up to 1, got "
                f"{dict(shares)}."
            )
        self.folder = Path(folder)
        self.shares = dict(shares)
        self.capacity = capacity
        self._segments: dict[str, list[str]] = {name: [] for name in shares}
        self._rows: dict[str, _Rows] = {name: _Rows() for name in shares}
        self._owed = dict.fromkeys(shares, 0.0)
        self._added = 0

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def count(self, source: str) -> int:
        """Return the rows of a source."""
        return len(self._rows[self._known(source)])

    def add(self, source: str, rows: TensorDictBase) -> None:
        """Append rows ``[N]`` as one segment, and forget the oldest beyond the bound.

        Args:
            source: one of the shares.
            rows: tensors alone, with the same entries in every segment.

        Raises:
            SettingsError: there is no such source.
            SchemaError: an entry is no tensor, such as text.
        """
        self._known(source)
        if not len(rows):
            return
        flat = _tensors(rows)
        self._added += 1
        name = f"{self._added:08d}-{len(rows)}.pt"
        folder = self.folder / source
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, lambda file: torch.save(flat, file))
        self._segments[source].append(name)
        self._rows[source].append(_unflatten(flat))
        self._forget(source)

    def sample(self, batch_size: int) -> TensorDict:
        """Draw rows ``[batch_size]`` with replacement, sources in their shares.

        The rows are drawn with PyTorch's global generator.

        Raises:
            SettingsError: no source has rows.
        """
        present = {
            name: share
            for name, share in self.shares.items()
            if share > 0 and len(self._rows[name])
        }
        if not present:
            raise SettingsError(
                "OnlineReplay: expected rows of a source with a share, got none in "
                f"{self.shares}. Add demonstrations or collect first."
            )
        total = sum(present.values())
        for name, share in present.items():
            self._owed[name] += batch_size * share / total
        counts = {name: int(self._owed[name]) for name in present}
        behind = sorted(present, key=lambda n: counts[n] - self._owed[n])
        for name in behind[: batch_size - sum(counts.values())]:
            counts[name] += 1
        parts = []
        for name, count in counts.items():
            self._owed[name] -= count
            rows = self._rows[name]
            if count:
                parts.append(rows.get(torch.randint(len(rows), (count,))))
        return torch.cat(parts)

    def prune(self) -> None:
        """Remove the files of segments that are forgotten.

        Call it when the state that forgot them is on disk: an older state reads them.
        """
        for name, kept in self._segments.items():
            for path in (self.folder / name).glob("*.pt"):
                if path.name not in kept:
                    remove(path)

    def state_dict(self) -> dict[str, object]:
        """Return the names of the segments, and what each source is owed."""
        return {
            "segments": {name: list(kept) for name, kept in self._segments.items()},
            "owed": dict(self._owed),
            "added": self._added,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Read the segments that a state names, and remove all others.

        Raises:
            ResumeError: a segment is missing or damaged.
        """
        self._owed, self._added = dict(state_dict["owed"]), state_dict["added"]
        for name in self.shares:
            self._segments[name] = list(state_dict["segments"][name])
            self._rows[name] = _Rows()
            for segment in self._segments[name]:
                path = self.folder / name / segment
                if not path.is_file():
                    raise ResumeError(
                        f"OnlineReplay: expected the segment {segment!r} in "
                        f"{str(path.parent)!r}, got none. {_REMEDY}"
                    )
                flat = read_tensors(
                    "OnlineReplay",
                    path,
                    dict[str, object],
                    remedy=_REMEDY,
                    error=ResumeError,
                )
                self._rows[name].append(_unflatten(cast("dict[str, Tensor]", flat)))
        self.prune()

    def _known(self, source: str) -> str:
        if source not in self.shares:
            raise SettingsError(
                f"OnlineReplay: expected a source of {sorted(self.shares)}, got "
                f"{source!r}."
            )
        return source

    def _forget(self, source: str) -> None:
        """Drop whole segments from the oldest on, but never the newest."""
        segments = self._segments[source]
        while len(self._rows[source]) > self.capacity and len(segments) > 1:
            oldest = segments.pop(0)
            self._rows[source].drop(_length(oldest))


class _Rows:
    """Rows in one tensordict with room to grow."""

    def __init__(self) -> None:
        self._room: TensorDict | None = None
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def get(self, rows: Tensor) -> TensorDict:
        assert self._room is not None, "nothing was added"
        return self._room[rows + self._begin]

    def append(self, rows: TensorDict) -> None:
        if self._room is None or self._end + len(rows) > len(self._room):
            kept = None if self._room is None else self._room[self._begin : self._end]
            size = max(64, 2 * (len(self) + len(rows)))
            room = TensorDict(
                {
                    key: value.new_zeros(size, *value.shape[1:])
                    for key, value in rows.items(True, True)
                },
                batch_size=[size],
            )
            if kept is not None:
                room[: len(kept)] = kept
            self._begin, self._end, self._room = 0, len(self), room
        self._room[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

    def drop(self, count: int) -> None:
        self._begin += count


def _length(segment: str) -> int:
    return int(segment.removesuffix(".pt").partition("-")[2])


def _tensors(rows: TensorDictBase) -> dict[str, Tensor]:
    """Return the entries by flat names, on the CPU."""
    flat = {}
    for key, value in rows.items(True, True, is_leaf=is_leaf_nontensor):
        name = key if type(key) is str else _SEPARATOR.join(key)
        if not torch.is_tensor(value):
            raise SchemaError(
                f"OnlineReplay: expected tensors, got {type(value).__name__} at "
                f"{key!r}. Turn text into ids with an InstructionTable."
            )
        # A slice of a larger tensor would be written with all of it.
        flat[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return flat


def _unflatten(flat: Mapping[str, Tensor]) -> TensorDict:
    rows = {tuple(name.split(_SEPARATOR)): value for name, value in flat.items()}
    return TensorDict(rows, batch_size=[len(next(iter(rows.values())))])
