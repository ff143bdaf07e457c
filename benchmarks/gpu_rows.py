"""Rows of the GPU day: measured, and written to a file at once, with errors."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import make_policy


def read_arguments(description: str, **more: Any) -> argparse.Namespace:
    """Read the command line of a stage.

    Args:
        description: of the stage.
        more: options with their defaults, beside device, out and rehearse.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("rows.json"))
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes; the numbers mean nothing"
    )
    for name, value in more.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(value), default=value)
    return parser.parse_args()


def tabletop_policy(head: str, chunk_size: int, hidden: int) -> nn.Module:
    """Return a policy with random weights for the tabletop, on the CPU."""
    env, folder = TabletopEnv(6, image_size=32, seed=0), tempfile.mkdtemp()
    dataset = collect(env, env.make_expert(), 6, folder=f"{folder}/d", progress=False)
    torch.manual_seed(0)
    return make_policy(dataset, chunk_size=chunk_size, head=head, hidden=hidden).eval()


class Rows:
    """Rows of tables that are in the file as soon as they are known.

    Args:
        path: of the file; what it held is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, table: str, **cells: object) -> None:
        """Add a row."""
        self.rows.append({"table": table, **cells})
        print({"table": table, **cells}, flush=True)
        self._write()

    @contextmanager
    def trial(self, table: str, **cells: object) -> Iterator[None]:
        """Let what fails be a row with the error, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            what = f"{type(error).__name__}: {str(error)[:400]}"
            self.add(table, **cells, error=" ".join(what.split()))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.rows, indent=1))


def device_clock(device: str) -> Callable[[], float]:
    """Return a clock, in s, that waits for what was asked of the device."""

    def clock() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def times_of(
    run: Callable[[], object], device: str, repeats: int, *, calls: int = 1
) -> list[float]:
    """Return ms per call, one number per repeat, after three calls that warm up."""
    clock = device_clock(device)
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = clock()
        for _ in range(calls):
            run()
        times.append((clock() - start) / calls * 1e3)
    return times


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: str, rounds: int
) -> dict[str, list[float]]:
    """Return ms per call of each, everyone once in each round."""
    clock, times = device_clock(device), {name: [] for name in runs}
    for number in range(-3, rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if number >= 0:
                times[name].append((clock() - start) * 1e3)
    return times


def spread(times: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {
        "ms": round(statistics.median(times), 3),
        "least": round(min(times), 3),
        "most": round(max(times), 3),
    }


def largest_difference(ours: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors of one shape."""
    if ours.shape != expected.shape:
        raise AssertionError(f"{tuple(ours.shape)} and {tuple(expected.shape)}")
    return (ours.double() - expected.double()).abs().max().item()


def compare(
    rows: Rows,
    table: str,
    run: Callable[[], Tensor],
    expected: Tensor,
    device: str,
    repeats: int,
    **cells: object,
) -> None:
    """Add a row: the largest difference from what is expected, and the time."""
    with rows.trial(table, **cells):
        started = time.perf_counter()
        difference = largest_difference(run(), expected)
        first = time.perf_counter() - started
        scale = expected.double().abs().max().item()
        rows.add(
            table,
            **cells,
            **spread(times_of(run, device, repeats)),
            difference=difference,
            relative=difference / max(scale, 1e-12),
            first_call_s=round(first, 2),
        )


def capture(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that replays a captured CUDA graph of ``run``.

    It returns the same tensors each time, overwritten.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()

    def replay() -> Any:
        graph.replay()
        return answer

    return replay
