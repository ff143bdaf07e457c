"""The checked-in notebooks are the tutorials, executed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
spec = importlib.util.spec_from_file_location("make", FOLDER / "make_notebooks.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

NAMES = (*make.NAMES, *make.NEEDS_LEROBOT)


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def sources(notebook):
    return [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]]


def test_every_notebook_is_listed():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_the_cells_of_its_tutorial(name):
    assert sources(read(name)) == sources(make.make_notebook(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_to_its_end_and_names_no_machine(name):
    cells = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert [o for o in outputs if o["output_type"] == "error"] == []
    texts = [t for o in outputs for t in (o.get("text", ""), o.get("data", {}))]
    found = re.findall(r"/(?:home|root|work|Users)/\w+", json.dumps(texts))
    assert found == []
