"""Sphinx configuration: ``make docs`` builds with warnings as errors."""

from __future__ import annotations

from sphinx_gallery.sorting import FileNameSortKey

import torchrl_vla

project = "torchrl_vla"
author = "The torchrl_vla authors"
copyright = "2026, The torchrl_vla authors"
version = release = torchrl_vla.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]

html_theme = "furo"
html_title = f"torchrl_vla {version}"
exclude_patterns = ["_build", "auto_tutorials/*.ipynb", "auto_tutorials/*.py"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_rtype = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": FileNameSortKey,
    "download_all_examples": False,
    "show_memory": False,
    "abort_on_example_error": True,
}
suppress_warnings = ["config.cache"]
