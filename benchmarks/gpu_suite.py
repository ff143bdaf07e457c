"""The test suite on a device.

    python benchmarks/gpu_suite.py --device cuda --workers 8 --out rows.json

It runs the tests that docs/gpu.md names, as `python -m pytest --device cuda`, and lists
what failed. A suite that is cut off has written the failures so far.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gpu_rows import Rows, read_arguments

ROOT = Path(__file__).parent.parent
_MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
#: The tests that `make test-device` names.
PATHS = re.search(r"^DEVICE_TESTS = (.*)$", _MAKEFILE, re.MULTILINE)[1].split()
TINY = ("test/objectives/test_bc.py",)
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)")
_FAILED = re.compile(r"(FAILED|ERROR) (\S+)(?: - (.*))?")


def main() -> None:
    given = read_arguments(__doc__, workers=8, most=60)
    rows = Rows(given.out)
    has_option = "--device" in (ROOT / "test/conftest.py").read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark"]  # its warning beside xdist is an error here
    command += ["--device", given.device] if has_option else []
    command += ["-n", "0" if given.rehearse else str(given.workers), "-rfE"]
    command += TINY if given.rehearse else PATHS
    rows.add("suite", fact="command", value=" ".join(command[1:]))
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
