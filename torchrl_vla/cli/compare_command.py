"""``torchrl-vla compare``: comparison of two evaluated policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, read_result


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
    gate: bool = False
    """Say per task whether the first policy improved, held, regressed or has too few
    episodes (underpowered) against the second. Episodes of the same seeds are paired.
    The exit status is 2 where a task regressed."""
    margin: float = 0.1
    """For --gate: loss of success rate that counts as none; 0.1 = ten points."""
    fail_on_underpowered: bool = False
    """For --gate: the exit status is 2 where a task is underpowered, too."""

    def run(self) -> int:
        """Compare, print the table and the verdict, and write the file."""
        if not 0.0 < self.confidence < 1.0:
            raise OptionError(
                f"--confidence: expected a number in (0, 1), got {self.confidence}."
            )
        if self.gate:
            return self._gate()
        comparison = library.compare(
            read_result("compare", self.a),
            read_result("compare", self.b),
            names=self._names(),
            unpaired=self.unpaired,
            confidence=self.confidence,
        )
        print(comparison)
        if self.json is not None:
            write_text(self.json, comparison.to_json())
        return 0

    def _gate(self) -> int:
        gate = library.regression_gate(
            read_result("compare", self.a),
            read_result("compare", self.b),
            margin=self.margin,
            confidence=self.confidence,
            names=self._names(),
        )
        print(gate)
        if self.json is not None:
            write_text(self.json, gate.to_json())
        return 0 if gate.passes(with_underpowered=not self.fail_on_underpowered) else 2

    def _names(self) -> tuple[str, str]:
        """Return the files' names, or the shortest ends of their paths that differ."""
        a, b = self.a.resolve().with_suffix(""), self.b.resolve().with_suffix("")
        parts = 1
        while a != b and a.parts[-parts:] == b.parts[-parts:]:
            parts += 1
        return "/".join(a.parts[-parts:]), "/".join(b.parts[-parts:])
