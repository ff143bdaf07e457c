"""``torchrl-vla inspect``: contents and problems of what is on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.cli import library


@dataclass(frozen=True)
class Inspect:
    """Say what a file or folder is, what it holds, and what is wrong with it.

    The exit status is 0 if nothing is wrong, 1 if there are problems, 2 if it cannot be
    read.
    """

    path: Positional[Path]
    """Dataset (a folder of ours or LeRobot's, or an HDF5 file), checkpoint, evaluation
    (the file that `evaluate --json` wrote), or folder of a training."""
    json: Path | None = None
    """File that receives the facts, tables and problems as JSON."""
    html: Path | None = None
    """File that receives a page with sample frames and curves as well."""

    def run(self) -> int:
        """Inspect, print, write the files; return the exit status."""
        inspection = library.inspect_path(self.path)
        print(inspection)
        if self.json is not None:
            write_text(self.json, inspection.to_json())
        if self.html is not None:
            library.write_inspection(self.html, inspection)
        return inspection.exit_code
