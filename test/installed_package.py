"""Check of the installed package, run by ``make dist`` beside the wheel."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import torchrl_vla


def main() -> None:
    """Import every subpackage of the wheel, and look at what it brought."""
    folder = Path(torchrl_vla.__file__).parent
    assert "site-packages" in folder.parts, f"not the installed package: {folder}"
    assert (folder / "py.typed").exists(), "the wheel has no py.typed"
    assert not (folder.parent / "test").exists(), "the wheel brings the tests"
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    for name in names:
        importlib.import_module(f"torchrl_vla.{name}")
    print(f"imported {len(names)} subpackages from the wheel")


if __name__ == "__main__":
    main()
