"""``torchrl-vla compare-profiles``: times and numerics of two profiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from torchrl_vla.cli import library


@dataclass(frozen=True)
class CompareProfiles:
    """Compare two profiles of one case: is the second faster, are its numbers the same?

    Exits with 1 if the numerics changed.
    """

    a: Positional[Path]
    """`profiling_row.json` that `profile` wrote, before the change."""
    b: Positional[Path]
    """The same after the change."""
    noise: float = 0.05
    """Relative change that two runs of the same code may show."""

    def run(self) -> int:
        """Print the table and the verdict."""
        comparison = library.compare_profiles(self.a, self.b, self.noise)
        print(comparison)
        return int(comparison.numerics == "changed")
