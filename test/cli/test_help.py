from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from torchrl_vla.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "tensordict", "torchrl", "numpy"} & set(sys.modules)
sys.exit(f"imported for the help: {sorted(heavy)}" if heavy else 0)
"""


@pytest.mark.parametrize(
    "command",
    [
        *("", "demo", "collect", "train", "finetune", "evaluate", "compare"),
        *("inspect", "doctor", "smoke"),
    ],
)
def test_help_answers_without_importing_torch(command):
    arguments = [*command.split(), "--help"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: torchrl-vla" in done.stdout


@pytest.mark.parametrize(
    "module", ["torchrl_vla", "torchrl_vla.errors", "torchrl_vla.recipes"]
)
def test_errors_and_settings_need_no_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
