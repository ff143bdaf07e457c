"""The GPU day: everything that only a GPU can show, in one report.

    python benchmarks/gpu_day.py --folder runs/gpu-day --minutes 12.5
    python benchmarks/gpu_day.py --rehearse     # on the CPU, tiny, in two minutes
    python benchmarks/gpu_day.py --stages numerics,smolvla

Each stage is a process with a time limit, a log and rows of its own, and no stage stops
another. `report.md` and `report.json` are written anew all the time, so that a day that
is cut off leaves what was done; rows of a stage that is cut off are in it. On a machine
without a network, `benchmarks/gpu_day.sh` installs prepared wheels first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
_STOP_S, _PAUSE_S = 5.0, 1.0
_LATE = "the budget is used up"


@dataclass(frozen=True)
class Stage:
    """A part of the day.

    Args:
        name: of the stage, its log and its rows.
        seconds: its time limit on a GPU.
        script: in this folder, with its arguments.
        beside: True = it runs while others do, before those that measure time.
        needs: a package without which it is not run.
    """

    name: str
    seconds: float
    script: tuple[str, ...]
    beside: bool = False
    needs: str = ""


#: In the order of their value; those that measure time run alone.
STAGES = (
    Stage("numerics", 150, ("gpu_numerics.py",), beside=True),
    Stage("suite", 270, ("gpu_suite.py",), beside=True),
    Stage("smolvla", 150, ("gpu_vlm.py", "--shape=smolvla")),
    Stage("pi0", 180, ("gpu_vlm.py", "--shape=pi0")),
    Stage("steps", 60, ("bench_bc_step.py",)),
    Stage("tabletop", 50, ("gpu_tabletop.py",)),
    Stage("lerobot", 60, ("bench_lerobot_step.py",), needs="lerobot"),
    Stage("demo", 270, ("gpu_demo.py",), beside=True),
)


class Day:
    """A run of stages, and its report.

    Args:
        folder: receives logs, rows and the report.
        device: where the stages compute.
        minutes: budget of all stages; one that would begin after it is not run.
        rehearse: True = tiny sizes.
    """

    def __init__(
        self, folder: Path, device: str, minutes: float, rehearse: bool
    ) -> None:
        self.folder, self.device, self.rehearse = folder, device, rehearse
        self.began, self.end = time.time(), time.time() + 60 * minutes
        self.outcomes: dict[str, dict[str, object]] = {}
        self.is_crowded = False
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, stages: list[Stage]) -> None:
        """Run the stages, those beside others first; the report grows meanwhile."""
        beside = [stage for stage in stages if stage.beside]
        for group in (beside, *([stage] for stage in stages if not stage.beside)):
            self.is_crowded = len(group) > 1
            running = {stage: (self._start(stage), time.time()) for stage in group}
            try:
                while running:
                    for stage, (process, began) in [*running.items()]:
                        if self._is_over(stage, process, began):
                            del running[stage]
                    self.write_report()
                    time.sleep(_PAUSE_S if running else 0.0)
            finally:
                for process, _ in running.values():
                    if process is not None:
                        stop(process)

    def _start(self, stage: Stage) -> subprocess.Popen | None:
        if time.time() >= self.end or is_missing(stage):
            return None
        arguments = [f"--device={self.device}"]
        if stage.script[0].startswith("bench_"):
            arguments.append(f"--history={self.folder / (stage.name + '.jsonl')}")
            arguments += ["--quick"] if self.rehearse else []
        else:
            arguments.append(f"--out={self.folder / (stage.name + '.json')}")
            arguments += ["--rehearse"] if self.rehearse else []
        command = [sys.executable, str(HERE / stage.script[0]), *stage.script[1:]]
        with (self.folder / f"{stage.name}.log").open("w") as log:
            few = {"OMP_NUM_THREADS": "1"} if self.rehearse else {}
            process = subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, **few},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process

    def _is_over(
        self, stage: Stage, process: subprocess.Popen | None, began: float
    ) -> bool:
        """Note how a stage stands; stop it where its time is over."""
        seconds = round(time.time() - began, 1)
        limit = 10 * stage.seconds if self.rehearse else stage.seconds
        is_late = time.time() > min(began + limit, self.end)
        if process is None:
            why = f"{stage.needs} is not installed" if is_missing(stage) else _LATE
            outcome = f"not run: {why}"
        elif (code := process.poll()) is not None:
            outcome = "done" if code == 0 else f"exit status {code}"
        elif is_late:
            stop(process)
            outcome = f"stopped after {seconds:.0f} s"
        else:
            outcome = "running"
        self.outcomes[stage.name] = {"outcome": outcome, "seconds": seconds}
        if self.is_crowded:
            self.outcomes[stage.name]["beside"] = "others, so times mean little"
        if outcome == "running":
            return False
        print(f"{stage.name}: {outcome}, {seconds} s", flush=True)
        return True

    def write_report(self) -> None:
        """Write `report.json` and `report.md`."""
        rows = {name: read_rows(self.folder, name) for name in self.outcomes}
        facts = {
            "device": self.device,
            "rehearsal": self.rehearse,
            "minutes": round((time.time() - self.began) / 60, 1),
        }
        stored = {"facts": facts, "stages": self.outcomes, "rows": rows}
        (self.folder / "report.json").write_text(json.dumps(stored, indent=1))
        lines = ["# GPU day", ""]
        if self.rehearse:
            lines += ["A rehearsal with tiny sizes: its numbers mean nothing.", ""]
        lines += [f"- {name}: {value}" for name, value in facts.items()]
        stages = [{"stage": n, **outcome} for n, outcome in self.outcomes.items()]
        lines += ["", *table(stages)]
        for name, found in rows.items():
            lines += ["", f"## {name}"]
            for title in dict.fromkeys(str(row["table"]) for row in found):
                part = [row for row in found if row["table"] == title]
                cells = [{k: v for k, v in r.items() if k != "table"} for r in part]
                lines += ["", f"### {title}", "", *table(cells)]
            log = self.folder / f"{name}.log"
            if self.outcomes[name]["outcome"] != "done" and log.exists():
                tail = log.read_text(errors="replace").splitlines()[-15:]
                lines += ["", "The end of its log:", "", "```", *tail, "```"]
        (self.folder / "report.md").write_text("\n".join(lines) + "\n")


def is_missing(stage: Stage) -> bool:
    """Return True where a stage's package is not installed."""
    return bool(stage.needs) and importlib.util.find_spec(stage.needs) is None


def stop(process: subprocess.Popen) -> None:
    """End a stage with all processes that it started; pytest sums up first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_STOP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def read_rows(folder: Path, stage: str) -> list[dict[str, object]]:
    """Return the rows of a stage; of a benchmark, those of its history."""
    try:
        return json.loads((folder / f"{stage}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        pass
    log = folder / f"{stage}.log"
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    contest = [line for line in lines if line.count(".") >= 4 and "   " in line]
    return [{"table": "contest", "row": line} for line in contest]


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return rows as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return []
    body = [[cell(row, name) for name in names] for row in rows]
    rule = ["---"] * len(names)
    return [f"| {' | '.join(cells)} |" for cells in (names, rule, *body)]


def cell(row: Mapping[str, object], name: str) -> str:
    """Return a cell as text."""
    value = row.get(name, "")
    text = f"{value:.4g}" if type(value) is float else str(value)
    return text.replace("|", "/").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu-day"))
    parser.add_argument("--device", default=None, help="cuda:0; rehearsing, cpu")
    parser.add_argument("--minutes", type=float, default=12.5)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--stages", default=",".join(s.name for s in STAGES))
    given = parser.parse_args()
    names = given.stages.split(",")
    unknown = set(names) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(
            f"--stages: expected some of {[s.name for s in STAGES]}, got {unknown}"
        )
    device = given.device or ("cpu" if given.rehearse else "cuda:0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    day = Day(given.folder.resolve(), device, given.minutes, given.rehearse)
    day.run([stage for stage in STAGES if stage.name in names])
    print(f"report: {day.folder / 'report.md'}")


if __name__ == "__main__":
    main()
