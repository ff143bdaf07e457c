"""Rows of known texts, which a text encoder keeps and stores with its weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_vla.policies.encoders.text_features import TextEncoder
from torchrl_vla.schema import (
    InstructionTable,
    MissingExtraError,
    UnknownInstructionError,
)

_IDS, _ROWS = "known_ids", "known_rows"


class _Rows(dict[int, Tensor]):
    """Rows by the id of their text; copies of an encoder share them."""

    def __deepcopy__(self, memo: dict[int, object]) -> _Rows:
        return self


class StoredTextEncoder(TextEncoder):
    """Prepare each distinct text once, and keep its row with the weights.

    Abstract: a subclass implements :meth:`compute_rows`, which may need packages and
    files. A policy that was loaded knows the rows of its texts without them. Nothing is
    computed until a row is needed: by a call, or to store the weights.

    Args:
        num_features: ``F``.
        row_shape: of one row.
        dtype: of the rows.
    """

    prepares_late: ClassVar[bool] = True

    def __init__(
        self, num_features: int, row_shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(num_features)
        self._empty = torch.empty(0, *row_shape, dtype=dtype)
        self._rows = _Rows()
        self._expected: dict[str, None] = {}  # in order, without their rows so far

    @abstractmethod
    def compute_rows(self, texts: Sequence[str]) -> Tensor:
        """Return the rows of texts that are not known yet, ``[N, ...]``."""

    def expect(self, texts: Sequence[str]) -> None:
        """Take note of texts whose rows are stored with the weights."""
        self._expected.update(dict.fromkeys(texts))

    def rows_of(self, texts: Sequence[str]) -> Tensor:
        """Return the rows of texts on the CPU; those that are new are computed.

        Raises:
            UnknownInstructionError: a text is new, and what computes its row is not
                there any more.
            MissingExtraError: no text is known yet, and a package is missing.
            FileNotFoundError: no text is known yet, and a folder is missing.
        """
        ids = InstructionTable(texts)
        numbers = dict(zip(ids.texts, ids.ids.tolist(), strict=True))
        new = [text for text, number in numbers.items() if number not in self._rows]
        if new:
            for text, row in zip(new, self._computed(new), strict=True):
                self._rows[numbers[text]] = row
        rows = [self._rows[numbers[text]] for text in texts]
        return torch.stack(rows) if rows else self._empty

    def _computed(self, texts: list[str]) -> Tensor:
        try:
            return self.compute_rows(texts).detach().cpu()
        except (MissingExtraError, FileNotFoundError) as error:
            if not self._rows:
                raise
            raise UnknownInstructionError(
                f"{type(self).__name__}: expected one of the {len(self._rows)} texts "
                f"that are stored with the policy, got {texts[0]!r}. Give it a known "
                f"instruction, or bring back what encodes a new one. {error}"
            ) from error

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        # Not as buffers: their number of rows changes, and losses, averages and casts
        # have no business with them.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:  # with it, weights are about to be loaded
            self.rows_of([*self._expected])
        ids = torch.tensor([*self._rows], dtype=torch.int64)
        rows = torch.stack([*self._rows.values()]) if self._rows else self._empty
        destination[prefix + _IDS], destination[prefix + _ROWS] = ids, rows

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        missing = arguments[2]
        if prefix + _IDS in state_dict and prefix + _ROWS in state_dict:
            ids = state_dict.pop(prefix + _IDS)
            rows = state_dict.pop(prefix + _ROWS).cpu()
            self._rows = _Rows(zip(ids.tolist(), rows, strict=True))
        else:
            missing.append(prefix + _IDS)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
