"""``torchrl-vla compare``: comparison of two evaluated policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError


@dataclass(frozen=True)
class Compare:
    """Compare two policies that were evaluated on the same seeds."""

    a: Positional[Path]
    """File that `evaluate --json` wrote of the first policy."""
    b: Positional[Path]
    """File that it wrote of the second policy."""
    json: Path | None = None
    """File that receives the comparison, with the episodes and origin of both."""
    unpaired: bool = False
    """Compare the episodes as independent ones, because the seeds are not the same. The
    interval is wider."""
    confidence: float = 0.95
    """Confidence level of the intervals."""

    def run(self) -> None:
        """Compare, print the table and the verdict, and write the file."""
        if not 0.0 < self.confidence < 1.0:
            raise OptionError(
                f"--confidence: expected a number in (0, 1), got {self.confidence}."
            )
        comparison = library.compare(
            _read(self.a),
            _read(self.b),
            names=self._names(),
            unpaired=self.unpaired,
            confidence=self.confidence,
        )
        print(comparison)
        if self.json is not None:
            write_text(self.json, comparison.to_json())

    def _names(self) -> tuple[str, str]:
        """Return the files' names, or the shortest ends of their paths that differ."""
        a, b = self.a.resolve().with_suffix(""), self.b.resolve().with_suffix("")
        parts = 1
        while a != b and a.parts[-parts:] == b.parts[-parts:]:
            parts += 1
        return "/".join(a.parts[-parts:]), "/".join(b.parts[-parts:])


def _read(path: Path) -> library.EvaluationResult:
    try:
        return library.EvaluationResult.from_json(path)
    except (OSError, ValueError) as error:
        why = str(error).removesuffix(".")
        raise OptionError(
            f"compare: expected a file that `torchrl-vla evaluate --json` wrote at "
            f"{str(path)!r}, got {type(error).__name__}: {why}."
        ) from error
