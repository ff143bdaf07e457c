"""Hold a contest between implementations of one thing: equality first, then time."""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else profiling writes to stderr

Contestants = Mapping[str, Callable[[], object]]


def read_quick(description: str) -> bool:
    """Read the command line; True = tiny sizes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that the script runs; its numbers mean nothing",
    )
    return parser.parse_args().quick


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
        more = "".join(f"{text:>10}" for text in (columns or {}).get(name, ()))
        print(
            f"{title:<26}{name:<18}{statistics.median(spent):9.3f}{more}   "
            f"{min(ratios):6.2f} {statistics.median(ratios):6.2f} {max(ratios):6.2f}"
        )
