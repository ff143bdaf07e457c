"""The device lane without a GPU, as every run of the suite rehearses it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PART = "rehearsal_device or waits"


def test_the_library_passes_on_a_device_without_hardware():
    # A part of `make test-device`: the device itself, and the waits for it.
    options = f"--device rehearsal -q -n 0 -p no:cacheprovider -k '{PART}'"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test/device", *shlex.split(options)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
