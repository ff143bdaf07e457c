"""Write tutorials as executed notebooks.

    python notebooks/make_notebooks.py [03_cloning ...]

``make notebooks`` runs it. Cells come from the scripts in ``tutorials/``, outputs from
running them. ``06_lerobot`` needs the interpreter of an environment with LeRobot.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
from sphinx_gallery.notebook import jupyter_notebook
from sphinx_gallery.py_source_parser import split_code_and_text_blocks

FOLDER = Path(__file__).parent
TUTORIALS = FOLDER.parent / "tutorials"
NAMES = ("00_vla", "03_cloning", "04_chunked_execution", "07_finetuning", "09_ppo")
NEEDS_LEROBOT = ("06_lerobot",)


def make_notebook(name: str) -> dict[str, Any]:
    """Return a tutorial as a notebook without outputs."""
    _, blocks = split_code_and_text_blocks(str(TUTORIALS / f"{name}.py"))
    conf = {**DEFAULT_GALLERY_CONF, "src_dir": str(TUTORIALS)}
    notebook = jupyter_notebook(blocks, conf, str(TUTORIALS))
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"{name}-{number}"
    notebook["nbformat_minor"] = 5  # the first with ids
    return notebook


def main(names: tuple[str, ...]) -> None:
    import nbformat
    from nbclient import NotebookClient

    # Warnings name files of the machine that ran the notebook.
    os.environ.update(PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1")
    for name in names:
        print(f"{name} ...", flush=True)
        notebook = nbformat.reads(json.dumps(make_notebook(name)), as_version=4)
        client = NotebookClient(notebook, timeout=900, record_timing=False)
        client.execute(cwd=str(FOLDER))
        notebook.metadata.pop("language_info", None)  # names a version of Python
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NAMES)
