"""The test suite on a device.

    python benchmarks/gpu_suite.py --device cuda --workers 8 --out rows.json

It runs the tests of `make test-device`, and lists what failed, also when it is
interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from gpu_rows import Rows, read_arguments

ROOT = Path(__file__).parent.parent
TINY = ("test/objectives/test_bc.py",)
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)")
_LIVE = re.compile(r"\[gw\d+\] \[ *(\d+)%\] (\w+) (\S+)")
_FAILED = re.compile(r"(FAILED|ERROR) (\S+)(?: - (.*))?")


def device_tests() -> list[str]:
    """Return what `make test-device` runs."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^DEVICE_TESTS = (.*)$", text, re.MULTILINE)
    return names.split()


def main() -> None:
    given = read_arguments(__doc__, workers=8, most=60)
    rows = Rows(given.out)
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest has it, too, and sums up
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfE"]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    command += ["--continue-on-collection-errors"]
    command += ["--device", given.device]
    command += ["-n", "1" if given.rehearse else str(given.workers)]
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
    counts: Counter[str] = Counter()
    why: dict[str, dict[str, object]] = {}
    for line in process.stdout:
        print(line, end="", flush=True)
        if live := _LIVE.match(line):
            share, outcome, test = live.groups()
            counts[outcome] += 1
            if outcome in ("FAILED", "ERROR") and len(why) < given.most:
                rows.add("failures", kind=outcome, test=test)
                why[test] = rows.rows[-1]
            if counts.total() % 100 == 0:
                rows.add("suite", fact=f"at {share} %", value=str(dict(counts)))
        elif found := _FAILED.match(line):
            kind, test, reason = found.groups()
            if test not in why and len(why) < given.most:
                rows.add("failures", kind=kind, test=test)
                why[test] = rows.rows[-1]
            if test in why:
                why[test]["why"] = (reason or "")[:300]
        elif " in " in line and line.startswith("=") and _SUMMARY.search(line):
            for number, what in _SUMMARY.findall(line):
                rows.add("suite", fact=what, value=int(number))
            rows.add("suite", fact="summary", value=line.strip("= \n"))
    process.wait()


if __name__ == "__main__":
    main()
