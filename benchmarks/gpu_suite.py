"""The test suite on a device.

    python benchmarks/gpu_suite.py --device cuda --workers 8 --out rows.json

It runs the tests of `make test-device`, and lists what failed. A suite that is cut off
has its log, in which the last line says how far it came.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from gpu_rows import Rows, read_arguments

ROOT = Path(__file__).parent.parent
TINY = ("test/objectives/test_bc.py",)
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)")
_FAILED = re.compile(r"(FAILED|ERROR) (\S+)(?: - (.*))?")


def device_tests() -> list[str]:
    """Return what `make test-device` runs."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^DEVICE_TESTS = (.*)$", text, re.MULTILINE)
    return names.split()


def main() -> None:
    given = read_arguments(__doc__, workers=8, most=60)
    rows = Rows(given.out)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rfE"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += ["--device", given.device]
    command += ["-n", "0" if given.rehearse else str(given.workers)]
    command += TINY if given.rehearse else device_tests()
    rows.add("suite", fact="command", value=" ".join(command[1:]))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    failed = 0
    for line in process.stdout:
        print(line, end="", flush=True)
        found = _FAILED.match(line)
        if found and failed < given.most:
            failed += 1
            kind, test, why = found.groups()
            rows.add("failures", kind=kind, test=test, why=(why or "")[:300])
        elif (
            " in " in line and _SUMMARY.search(line) and line.lstrip("= ")[0].isdigit()
        ):
            for number, what in _SUMMARY.findall(line):
                rows.add("suite", fact=what, value=int(number))
            rows.add("suite", fact="summary", value=line.strip("= \n"))
    process.wait()


if __name__ == "__main__":
    main()
