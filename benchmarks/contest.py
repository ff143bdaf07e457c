"""Hold a contest between implementations of one thing: equality first, then time."""

from __future__ import annotations

import argparse
import atexit
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from torchrl_vla.evaluation import package_versions
from torchrl_vla.profiling.orchestrator import current_commit
from torchrl_vla.profiling.run_environment import describe_run

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else profiling writes to stderr

Contestants = Mapping[str, Callable[[], object]]

HISTORY = Path(__file__).with_name("history.jsonl")

#: Ratios of this run by row, for the history.
_RATIOS: dict[str, dict[str, object]] = {}


def read_quick(description: str) -> bool:
    """Read the command line; True = tiny sizes.

    A run with full sizes appends a line to the history when it ends.
    """
    return read_options(description).quick


def read_options(description: str, *, device: bool = False) -> argparse.Namespace:
    """Read the command line: ``quick``, True = tiny sizes, and ``history``.

    A run with full sizes appends a line to the history when it ends.

    Args:
        description: of the script.
        device: True = there is a ``device``, where the contestants run.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that the script runs; its numbers mean nothing",
    )
    parser.add_argument(
        "--history",
        type=Path,
        default=HISTORY,
        help="file that receives a line of JSON with the ratios of a full run",
    )
    if device:
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    _RATIOS.clear()
    if not given.quick:
        atexit.register(write_history, Path(sys.argv[0]).stem, given.history)
    return given


def record_ratios(row: str, ratios: Sequence[float], baseline: str) -> None:
    """Keep the ratios of a row, one per round, for the history."""
    _RATIOS[row] = {
        "baseline": baseline,
        "min": min(ratios),
        "median": statistics.median(ratios),
        "max": max(ratios),
        "rounds": len(ratios),
    }


def write_history(script: str, path: Path) -> None:
    """Append one line with the ratios that were recorded, and where they are from."""
    if not _RATIOS:
        return
    line = {
        "script": script,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": describe_run()["machine"],
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "ratios": _RATIOS,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def check_equal(title: str, results: Mapping[str, Tensor]) -> None:
    """Refuse to compare the cost of different results."""
    (first, expected), *others = results.items()
    for name, result in others:
        if not torch.equal(result, expected):
            raise AssertionError(f"{title}: {name} and {first} disagree.")


def time_in_turns(
    contestants: Contestants,
    rounds: int,
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return each contestant's milliseconds per call, one number per round.

    In each round everyone runs once, so that all share the machine's noise and the
    ratios within a round are fair. On a busy machine ``time.process_time`` leaves out
    the waiting for a core.
    """
    _keep_freed_memory()
    times = {name: [] for name in contestants}
    for number in range(-3, rounds):  # the first three warm up
        for name, run in contestants.items():
            start = clock()
            for _ in range(repeats):
                run()
            spent = (clock() - start) / repeats * 1e3
            if number >= 0:
                times[name].append(spent)
    return times


def _keep_freed_memory() -> None:
    """Let no contestant pay for the pages that another one's frees gave back."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # not glibc
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_trim_threshold, 1 << 30)
    mallopt(m_mmap_threshold, 32 << 20)


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at once while it ran."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    events = profiler.profiler.kineto_results.events()
    memory = [e for e in events if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def print_head(baseline: str, *columns: str) -> None:
    more = "".join(f"{column:>10}" for column in columns)
    print(f"{'':<44}{'ms':>9}{more}   against {baseline}: min median max")


def print_rows(
    title: str,
    times: Mapping[str, list[float]],
    baseline: str,
    columns: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Print each contestant's median and its ratio to the baseline, round by round."""
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(spent, times[baseline])]
        record_ratios(f"{title}: {name}", ratios, baseline)
        more = "".join(f"{text:>10}" for text in (columns or {}).get(name, ()))
        print(
            f"{title:<26}{name:<18}{statistics.median(spent):9.3f}{more}   "
            f"{min(ratios):6.2f} {statistics.median(ratios):6.2f} {max(ratios):6.2f}"
        )
