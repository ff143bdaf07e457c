from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_as_it_is(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rates = re.findall(r"success ([\d.]+) % .* over 100 episodes", done.stdout)
    trained, shuffled = map(float, rates)
    assert trained > 80
    assert shuffled < 40


def test_every_link_into_the_repository_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_folder_of_the_package_is_in_the_table():
    package = ROOT / "torchrl_vla"
    folders = {path.parent.name for path in package.glob("[!_]*/__init__.py")}
    table = README.split("## Where everything lives")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert folders <= named
