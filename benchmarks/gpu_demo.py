"""The tabletop demo on a device: time and success.

    python benchmarks/gpu_demo.py --device cuda --out rows.json --iterations 10

It is the command `torchrl-vla demo --device DEVICE`. Report and results are copied
to a folder beside the rows, without the demonstrations.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_rows import Rows, read_arguments

TINY = {"demonstrations": 12, "steps": 4, "iterations": 1, "episodes": 4}


def main() -> None:
    sizes = {"demonstrations": 960, "steps": 1600, "iterations": 10, "episodes": 500}
    given = read_arguments(__doc__, **sizes)
    sizes = TINY if given.rehearse else {name: vars(given)[name] for name in sizes}
    rows, folder = Rows(given.out), Path(tempfile.mkdtemp()) / "demo"
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    signal.signal(signal.SIGINT, lambda *_: None)  # the demo stops, its results count
    started = time.perf_counter()
    with rows.trial("demo", device=given.device):
        command = [
            sys.executable,
            "-m",
            "torchrl_vla",
            "demo",
            "--device",
            given.device,
        ]
        subprocess.run([*command, "--folder", str(folder), *arguments], check=True)
    seconds = time.perf_counter() - started
    rows.add("demo", device=given.device, part="everything", seconds=round(seconds, 1))
    kept = given.out.parent / "demo"
    kept.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*.*")):
        shutil.copy(path, kept)
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        episodes = found.get("episodes", [])
        if episodes:
            rows.add(
                "demo",
                device=given.device,
                part=path.stem,
                episodes=len(episodes),
                successes=sum(bool(episode["success"]) for episode in episodes),
            )


if __name__ == "__main__":
    main()
