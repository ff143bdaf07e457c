from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchrl_vla

pytestmark = pytest.mark.xdist_group("docs")  # one build for all

ROOT = Path(__file__).parent.parent
DOCUMENTED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("benchmarks", "tutorials"),
)


def public_names():
    for path in sorted(Path(torchrl_vla.__path__[0]).glob("*/__init__.py")):
        package = importlib.import_module(f"torchrl_vla.{path.parent.name}")
        for name in getattr(package, "__all__", ()):
            yield package.__name__, name, getattr(package, name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a copy: Sphinx-Gallery writes beside the sources."""
    copy = tmp_path_factory.mktemp("site")
    generated = shutil.ignore_patterns("_build", "auto_tutorials", "__pycache__")
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=generated)
    for name in DOCUMENTED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=generated)
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    options = ["-D", "plot_gallery=0", "-b", "html", "docs", "html"]
    done = subprocess.run(
        command + options,
        cwd=copy,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "html"


def test_the_documentation_builds_without_a_warning_and_has_the_tutorials(site):
    pages = {page.stem for page in (site / "auto_tutorials").glob("[01]*.html")}
    assert pages == {script.stem for script in (ROOT / "tutorials").glob("*.py")}


def test_every_public_name_is_on_the_page_of_all_with_a_line_of_its_own(site):
    text = (site / "all.html").read_text()
    lines = dict(re.findall(r"<li><p>.*?>(\w+)</span></code>.*?: (.*?)</p>", text))
    names = {name for _, name, _ in public_names()}
    assert set(lines) == names
    assert lines["wilson_interval"].startswith("Return Wilson")
    assert "action_chunk" in lines["ACTION_CHUNK_KEY"]


def test_every_public_class_and_function_has_an_entry_in_the_reference(site):
    reference = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    entries = set(re.findall(r'<dt class="[^"]*" id="([\w.]+)"', reference))
    wanted = {
        f"{package}.{name}"
        for package, name, value in public_names()
        if callable(value) and getattr(value, "__doc__", None)
        if not hasattr(value, "__args__")  # a Literal is no class
    }
    assert wanted - entries == set()


def test_every_link_of_the_included_pages_leads_to_a_page(site):
    for page in ("readme", "contributing", "benchmarks", "index"):
        text = (site / f"{page}.html").read_text()
        links = re.findall(r'class="reference internal" href="([^"#]+)', text)
        assert [link for link in links if not (site / link).exists()] == [], page
