"""Sphinx configuration: ``make docs`` builds with warnings as errors."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx_gallery.sorting import FileNameSortKey

import torchrl_vla

project = "torchrl_vla"
author = "The torchrl_vla authors"
copyright = "2026, The torchrl_vla authors"
version = release = torchrl_vla.__version__

# No intersphinx: the build needs no network.
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

HAS_LEROBOT = importlib.util.find_spec("lerobot") is not None
sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "auto_tutorials",
    # Shown without output where what it needs is not installed.
    "filename_pattern": r"/\d\d_" if HAS_LEROBOT else r"/\d\d_(?!lerobot)",
    "within_subsection_order": FileNameSortKey,
    "download_all_examples": False,
    "show_memory": False,
    "abort_on_example_error": True,
}
# The gallery's configuration holds a class, which Sphinx cannot keep between builds.
suppress_warnings = ["config.cache"]

#: Where links of the repository's own pages lead in the documentation.
LINKS = {
    "](docs/images/": "](images/",
    "](notebooks/)": "](auto_tutorials/index.rst)",
    "](SECURITY.md)": "](security.md)",
    "](CHANGELOG.md)": "](changelog.md)",
    "](tutorials/)": "](auto_tutorials/index.rst)",
    "](benchmarks/README.md)": "](benchmarks.md)",
    "](CONTRIBUTING.md)": "](contributing.md)",
}
ALL_MARKER = "<!-- every public name -->"


def rewrite_links(app: Sphinx, path: Any, parent: str, content: list[str]) -> None:
    for link, page in LINKS.items():
        content[0] = content[0].replace(link, page)
    content[0] = re.sub(r"\]\(docs/(\w+\.md)\)", r"](\1)", content[0])


def list_public_names(app: Sphinx, docname: str, content: list[str]) -> None:
    if ALL_MARKER in content[0]:
        sections = [section(name) for name in public_subpackages()]
        content[0] = content[0].replace(ALL_MARKER, "\n\n".join(sections))


def public_subpackages() -> list[str]:
    """Those that export something; the command line exports nothing."""
    names = [module.name for module in pkgutil.iter_modules(torchrl_vla.__path__)]
    packages = [importlib.import_module(f"torchrl_vla.{name}") for name in names]
    return [package.__name__ for package in packages if hasattr(package, "__all__")]


def section(package_name: str) -> str:
    package = importlib.import_module(package_name)
    short = package_name.rpartition(".")[2]
    lines = [f"## {package_name}\n", f"[{first_line(package)}](api/{short}.md)\n"]
    for name in package.__all__:
        link = f"{{py:obj}}`{name} <{package_name}.{name}>`"
        lines.append(f"- {link}: {describe(package, name)}")
    return "\n".join(lines)


def describe(package: Any, name: str) -> str:
    value = getattr(package, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return first_line(value)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        comments = ModuleAnalyzer.for_module(module.name).find_attr_docs()
        if ("", name) in comments:
            return plain(" ".join(comments["", name]).strip())
    return f"`{value!r}`"


def first_line(documented: Any) -> str:
    return plain(inspect.getdoc(documented).splitlines()[0])


def plain(text: str) -> str:
    """Turn roles into code: the line stands in Markdown."""
    return re.sub(r":\w+:(`[^`]+`)", r"\1", text)


def show_constructor(
    app: Sphinx,
    what: str,
    name: str,
    documented: Any,
    options: Any,
    signature: str | None,
    annotation: str | None,
) -> tuple[str, str | None] | None:
    """Give a class the signature that ``inspect`` finds.

    Sphinx stops at the ``__new__`` of tensordict's modules, ``(*args, **kwargs)``.
    """
    if what != "class" or signature is None or "*args" not in signature:
        return None
    found = inspect.signature(documented).parameters.values()
    shown = [p.replace(annotation=inspect.Parameter.empty) for p in found]
    return str(inspect.Signature(shown)), annotation


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", show_constructor)
    app.connect("include-read", rewrite_links)
    app.connect("source-read", list_public_names)
