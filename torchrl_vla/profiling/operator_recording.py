"""Operators of a window of steps: tables and Chrome traces of PyTorch's profiler."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from torchrl_vla._internal.durable_files import write_text

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else profiling writes to stderr

WAIT, WARMUP, ACTIVE = 1, 2, 6
TABLES_FOLDER, TRACES_FOLDER = "torch_tables", "torch_traces"
_ROWS = 40

#: File of a table to the column that it is sorted by.
_TABLES = {
    "cpu_time_total": "cpu_time_total",
    "cpu_memory": "self_cpu_memory_usage",
    "flops": "flops",
}
#: The generic name of a column first, the one of old versions of PyTorch second.
_DEVICE_TABLES = {
    "cuda_time_total": ("self_device_time_total", "self_cuda_time_total"),
    "cuda_memory": ("self_device_memory_usage", "self_cuda_memory_usage"),
}


class OperatorRecording:
    """Record the operators of steps 4 to 9 with PyTorch's profiler.

    Args:
        folder: receives ``torch_tables/*.txt`` and ``torch_traces/``.
        device: where the training runs.

    Keyword Args:
        traces: True = write a Chrome trace of the window.
    """

    def __init__(self, folder: Path, device: torch.device, *, traces: bool) -> None:
        self._tables, self._traces = folder / TABLES_FOLDER, folder / TRACES_FOLDER
        self._writes_traces, self._on_device = traces, device.type == "cuda"
        activities = [ProfilerActivity.CPU]
        if self._on_device:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
            with_flops=True,
            acc_events=True,  # of one cycle; else some versions warn
        )

    def start(self) -> None:
        """Begin to count steps."""
        for folder in (self._tables, self._traces):
            folder.mkdir(parents=True, exist_ok=True)
        self._profile.start()

    def step(self) -> None:
        """Count a step."""
        self._profile.step()

    def stop(self) -> None:
        """End the recording; a window that is open is written as it is."""
        self._profile.stop()

    def _write(self, recorded: profile) -> None:
        if self._writes_traces:
            path = self._traces / f"trace_step_{recorded.step_num}.json"
            recorded.export_chrome_trace(str(path))
        averages = recorded.key_averages()
        sorting: dict[str, tuple[str, ...]] = {n: (k,) for n, k in _TABLES.items()}
        if self._on_device:
            sorting |= _DEVICE_TABLES
        for name, columns in sorting.items():
            if (table := operator_table(averages, columns)) is not None:
                write_text(self._tables / f"{name}.txt", table)


def operator_table(averages: object, columns: tuple[str, ...]) -> str | None:
    """Return a table sorted by the first column that PyTorch knows, None without one.

    Args:
        averages: of ``profile.key_averages()``.
        columns: names, the preferred one first.
    """
    for column in columns:
        try:
            return averages.table(sort_by=column, row_limit=_ROWS)  # type: ignore[attr-defined]
        except (AttributeError, ValueError):
            continue
    return None
