"""``torchrl-vla compare``: which of two evaluated policies is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from torchrl_vla.cli.options import OptionError
from torchrl_vla.evaluation import EvaluationResult, compare


@dataclass(frozen=True)
class Compare:
    """Compare two policies that were evaluated on the same seeds."""

    a: tyro.conf.Positional[Path]
    """What `evaluate --json` wrote of the first policy."""
    b: tyro.conf.Positional[Path]
    """What it wrote of the second."""
    json: Path | None = None
    """Where to write the comparison, with the episodes and origin of both."""
    unpaired: bool = False
    """The seeds are not the same: compare as independent episodes. The interval is
    wider."""
    confidence: float = 0.95
    """How sure the intervals are."""

    def run(self) -> None:
        """Compare, print the table and the verdict, and write what was asked for."""
        if not 0.0 < self.confidence < 1.0:
            raise OptionError(
                f"--confidence: expected a number in (0, 1), got {self.confidence}."
            )
        comparison = compare(
            _read(self.a),
            _read(self.b),
            names=self._names(),
            unpaired=self.unpaired,
            confidence=self.confidence,
        )
        print(comparison)
        if self.json is not None:
            self.json.write_text(comparison.to_json())

    def _names(self) -> tuple[str, str]:
        """Return the files' names, or as much of their paths as tells them apart."""
        a, b = self.a.resolve().with_suffix(""), self.b.resolve().with_suffix("")
        parts = 1
        while a != b and a.parts[-parts:] == b.parts[-parts:]:
            parts += 1
        return "/".join(a.parts[-parts:]), "/".join(b.parts[-parts:])


def _read(path: Path) -> EvaluationResult:
    try:
        return EvaluationResult.from_json(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = str(error).removesuffix(".")
        raise OptionError(
            f"compare: expected a file that `torchrl-vla evaluate --json` wrote at "
            f"{str(path)!r}, got {type(error).__name__}: {why}."
        ) from error
